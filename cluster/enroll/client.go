package enroll

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
)

// Client gets certificates in a pod.
type Client struct {
	Address    string // host:port of the certificate port; a name may stand for several replicas
	ServerName string // that the replicas' certificates carry
	Cluster    string // member cluster of the pod
	Authority  string // PEM file: whom to trust
	Token      string // file
}

// Get asks for a certificate with a new key. have is the present certificate, nil where there is none.
func (c *Client) Get(ctx context.Context, have *tls.Certificate) (certPEM, keyPEM []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("making a key: %w", err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, nil, fmt.Errorf("making a certificate request: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, fmt.Errorf("encoding a key: %w", err)
	}
	cert, err := c.ask(ctx, csr, have)
	if err != nil {
		return nil, nil, fmt.Errorf("asking %s for a certificate: %w", c.Address, err)
	}
	keyPEM = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	if _, err := tls.X509KeyPair(cert, keyPEM); err != nil {
		return nil, nil, fmt.Errorf("the certificate from %s: %w", c.Address, err)
	}
	return cert, keyPEM, nil
}

func (c *Client) ask(ctx context.Context, csr []byte, have *tls.Certificate) ([]byte, error) {
	config, err := c.tls(have)
	if err != nil {
		return nil, err
	}
	body, err := json.Marshal(request{Cluster: c.Cluster, CSR: csr})
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+c.Address+Path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if token, err := os.ReadFile(c.Token); err == nil {
		req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	} else if have == nil {
		return nil, fmt.Errorf("reading the pod's token: %w", err)
	}
	// One connection for one request: the next one may go to another replica, and shows another certificate.
	transport := &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}
	client := &http.Client{Transport: transport, Timeout: patience}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s", resp.Status, strings.TrimSpace(string(text)))
	}
	var got response
	err = json.Unmarshal(text, &got)
	return []byte(got.Certificate), err
}

func (c *Client) tls(have *tls.Certificate) (*tls.Config, error) {
	raw, err := os.ReadFile(c.Authority)
	if err != nil {
		return nil, fmt.Errorf("reading whom to trust: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(raw) {
		return nil, fmt.Errorf("%s holds no certificate: it should be the authority of the control plane", c.Authority)
	}
	config := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots, ServerName: c.ServerName}
	if have != nil {
		config.Certificates = []tls.Certificate{*have}
	}
	return config, nil
}
