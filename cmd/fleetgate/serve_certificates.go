package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/fleetgate/fleetgate/cluster/enroll"
	"github.com/fleetgate/fleetgate/cluster/fleet"
	"github.com/fleetgate/fleetgate/cluster/pki"
)

// serveCertificates answers pods that want a certificate, on every replica that holds the authority's key. It needs neither a leader nor, for a renewal, an API server.
func (r *replica) serveCertificates() (stop func(), err error) {
	if r.cfg.ProxyCAKey == "" {
		return func() {}, nil
	}
	authority, err := pki.OpenAuthority(r.cfg.ProxyCA, r.cfg.ProxyCAKey)
	if err != nil {
		return nil, fmt.Errorf("--proxy-ca, --proxy-ca-key: %w", err)
	}
	lis, err := listen("certificate port", "--certificates-listen", r.cfg.CertificatesListen)
	if err != nil {
		return nil, err
	}
	server := &http.Server{
		Handler:           &enroll.Server{Sign: authority.Sign, Review: r.review, Gateway: r.gatewayOfAccount, Now: time.Now, Log: r.log},
		ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 20 * time.Second, MaxHeaderBytes: 32 << 10,
	}
	go func() { _ = server.Serve(tls.NewListener(lis, enroll.TLS(r.proxies.ServerConfig("http/1.1")))) }()
	return func() { _ = server.Close() }, nil
}

// review asks the API server of a member cluster whose token this is.
func (r *replica) review(ctx context.Context, cluster, token string) (enroll.Pod, error) {
	api := r.infrastructure[cluster]
	if api == nil {
		return enroll.Pod{}, fmt.Errorf("%w: there is no member cluster %q with an API server", enroll.ErrDenied, cluster)
	}
	pod, err := api.Review(ctx, token)
	if err != nil && !errors.Is(err, enroll.ErrDenied) {
		err = fmt.Errorf("member cluster %s: %w", cluster, err)
	}
	return pod, err
}

// gatewayOfAccount finds the Gateway whose fleet runs under a service account.
func (r *replica) gatewayOfAccount(cluster, namespace, account string) (string, bool) {
	for _, g := range r.gatewaysOf(cluster) {
		if g[0] != namespace {
			continue
		}
		if i, ok := r.pipe.Infrastructure(gatewayKey(cluster, namespace, g[1])); ok && fleet.Name(g[1], i.Class) == account {
			return g[1], true
		}
	}
	return "", false
}
