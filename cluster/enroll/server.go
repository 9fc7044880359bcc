package enroll

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/fleetgate/fleetgate/xds"
)

// maxRequest is far above any CSR of an ECDSA key.
const maxRequest = 16 << 10

// skew is by how much clocks may differ.
const skew = time.Hour

// Server issues certificates to proxies, on every replica.
type Server struct {
	// Sign makes a client certificate for a public key.
	Sign func(key any, who *url.URL, from, until time.Time) (pem []byte, err error)
	// Review asks the API server of a member cluster whose token this is; ErrDenied where it is nobody's, another error where it could not be asked.
	Review func(ctx context.Context, cluster, token string) (Pod, error)
	// Gateway gives the Gateway whose fleet runs under a service account.
	Gateway func(cluster, namespace, serviceAccount string) (string, bool)
	Now     func() time.Time
	Log     *slog.Logger
}

// TLS is the configuration of the port: a client certificate is verified where there is one, and not asked of those who come for their first.
func TLS(c *tls.Config) *tls.Config {
	c = c.Clone()
	optional := func(c *tls.Config) *tls.Config { c.ClientAuth = tls.VerifyClientCertIfGiven; return c }
	if build := c.GetConfigForClient; build != nil {
		c.GetConfigForClient = func(h *tls.ClientHelloInfo) (*tls.Config, error) {
			one, err := build(h)
			if err != nil {
				return nil, err
			}
			return optional(one.Clone()), nil
		}
	}
	return optional(c)
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != Path || r.Method != http.MethodPost {
		http.Error(w, "certificates are issued at POST "+Path, http.StatusNotFound)
		return
	}
	cert, who, err := s.issue(r)
	if err != nil {
		code := http.StatusServiceUnavailable
		if errors.Is(err, ErrDenied) {
			code = http.StatusForbidden
		}
		s.Log.Warn("no certificate issued", "remote", r.RemoteAddr, "err", err)
		http.Error(w, err.Error(), code)
		return
	}
	s.Log.Info("certificate issued", "proxy", who.URI().String())
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(response{Certificate: string(cert)})
}

func (s *Server) issue(r *http.Request) ([]byte, xds.Identity, error) {
	var req request
	if err := json.NewDecoder(http.MaxBytesReader(nil, r.Body, maxRequest)).Decode(&req); err != nil {
		return nil, xds.Identity{}, fmt.Errorf("%w: reading the request: %w", ErrDenied, err)
	}
	csr, err := x509.ParseCertificateRequest(req.CSR)
	if err == nil {
		err = csr.CheckSignature() // the key is the asker's
	}
	if err != nil {
		return nil, xds.Identity{}, fmt.Errorf("%w: certificate request: %w", ErrDenied, err)
	}
	who, from, until, err := s.identify(r, req.Cluster)
	if err != nil {
		return nil, who, err
	}
	cert, err := s.Sign(csr.PublicKey, who.URI(), from, until)
	return cert, who, err
}

// identify finds out who asks: by the token, or where the API server cannot be asked by the certificate that is to be renewed. A token that was denied is not made
// good by a certificate: the pod is gone.
func (s *Server) identify(r *http.Request, cluster string) (who xds.Identity, from, until time.Time, err error) {
	now := s.Now()
	token, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	reason := errors.New("no token was shown")
	if token != "" {
		who, err := s.byToken(r.Context(), cluster, token)
		if err == nil {
			from, until, _ := lifetime(now, now.Add(-skew))
			return who, from, until, nil
		}
		if errors.Is(err, ErrDenied) {
			return who, from, until, err
		}
		reason = err
	}
	if r.TLS == nil || len(r.TLS.VerifiedChains) == 0 {
		return who, from, until, fmt.Errorf("there is no certificate to renew, and %w", reason)
	}
	leaf := r.TLS.VerifiedChains[0][0]
	if who, err = xds.ParseIdentity(leaf); err != nil {
		return who, from, until, fmt.Errorf("%w: %w", ErrDenied, err)
	}
	from, until, ok := lifetime(now, leaf.NotBefore)
	if !ok {
		return who, from, until, fmt.Errorf("the certificate was renewed by itself for %s, it takes a token now, and %w", Longest, reason)
	}
	return who, from, until, nil
}

func (s *Server) byToken(ctx context.Context, cluster, token string) (xds.Identity, error) {
	ctx, cancel := context.WithTimeout(ctx, askWithin)
	defer cancel()
	pod, err := s.Review(ctx, cluster, token)
	if err != nil {
		return xds.Identity{}, fmt.Errorf("token of a pod of cluster %q: %w", cluster, err)
	}
	if pod.UID == "" {
		return xds.Identity{}, fmt.Errorf("%w: the token is bound to no pod: use a projected token", ErrDenied)
	}
	gateway, ok := s.Gateway(cluster, pod.Namespace, pod.ServiceAccount)
	if !ok { // this replica may not know the Gateway yet: another try is worth it
		return xds.Identity{}, fmt.Errorf("service account %s/%s of cluster %q runs no fleet that this replica knows", pod.Namespace, pod.ServiceAccount, cluster)
	}
	return xds.Identity{Cluster: cluster, Namespace: pod.Namespace, Gateway: gateway, Proxy: pod.UID}, nil
}
