package translate

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

type pair struct{ cert, key []byte }

// certificates are some that Envoy takes and some that it does not.
var certificates = sync.OnceValue(func() map[string]pair {
	small, _ := rsa.GenerateKey(rand.Reader, 1024)
	curve, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	weak, _ := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	_, edwards, _ := ed25519.GenerateKey(rand.Reader)
	return map[string]pair{
		"ecdsa": certificate(curve), "rsa1024": certificate(small), "ed25519": certificate(edwards), "p224": certificate(weak),
		"junk": {[]byte("junk"), []byte("junk")}, "none": {},
	}
})

func certificate(key crypto.Signer, more ...pkix.Extension) pair {
	template := &x509.Certificate{ExtraExtensions: more, SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "a.example"}, NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1<<32, 0), DNSNames: []string{"a.example"}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		panic(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		panic(err)
	}
	return pair{pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})}
}

// TestSecretThatEnvoyWouldReject names each case after what is wrong with it.
func TestSecretThatEnvoyWouldReject(t *testing.T) {
	c := certificates()
	key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	for name, want := range map[string]struct {
		pair
		reason string
	}{
		"good":            {c["ecdsa"], ""},
		"empty":           {c["none"], "no usable certificate"},
		"small key":       {c["rsa1024"], "1024 bits"},
		"weak curve":      {c["p224"], "P-224"},
		"broken chain":    {pair{append(slices.Clone(c["ecdsa"].cert), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("x")})...), c["ecdsa"].key}, "certificate 2"},
		"broken PEM":      {pair{append(slices.Clone(c["ecdsa"].cert), "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n"...), c["ecdsa"].key}, "PEM that is broken"},
		"PEM cut off":     {pair{append(slices.Clone(c["ecdsa"].cert), "-----BEGIN CERTIFICATE-----\nMIIB"...), c["ecdsa"].key}, "PEM that is broken"},
		"text before PEM": {pair{append([]byte("Certificate:\n"), c["ecdsa"].cert...), c["ecdsa"].key}, ""},
		"must-staple":     {certificate(key, pkix.Extension{Id: mustStaple, Value: []byte{0x30, 3, 2, 1, 5}}), "OCSP"},
		"unknown key":     {c["ed25519"], "does not take"},
		"key of another":  {pair{c["ecdsa"].cert, c["ed25519"].key}, "no usable certificate"},
		"not a PEM block": {c["junk"], "no usable certificate"},
	} {
		_, reason := plainSecret("s", &secretFact{"kubernetes.io/tls", want.cert, want.key})
		if (want.reason == "") != (reason == "") || !strings.Contains(reason, want.reason) {
			t.Errorf("%s: %q, want %q", name, reason, want.reason)
		}
	}
}
