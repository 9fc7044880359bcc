// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// eager is how often a container is probed that has not been ready yet: a kubelet would wait a whole period after a first failure, and tests with it.
const eager = 200 * time.Millisecond

// target is what a probe or a hook is about.
type target struct {
	container *v1.Container
	ip        string
	exec      func(ctx context.Context, args []string) error
}

// probe follows one probe until ctx ends and calls report with each change: true after successThreshold successes, false after failureThreshold failures, and
// again with each failure after that.
func probe(ctx context.Context, t target, p *v1.Probe, soon bool, report func(ok bool, why error)) {
	if !wait(ctx, seconds(p.InitialDelaySeconds, 0)) {
		return
	}
	period := seconds(p.PeriodSeconds, 10)
	var c counter
	for {
		err := t.check(ctx, p)
		if ctx.Err() != nil {
			return
		}
		if c.count(p, err == nil, time.Now(), period) {
			report(err == nil, err)
		}
		pause := period
		if soon && !c.everGood {
			pause = min(period, eager)
		}
		if !wait(ctx, pause) {
			return
		}
	}
}

// counter counts the outcomes of a probe in a row. However often it is tried, no more than one failure counts in a period.
type counter struct {
	good, bad           int32
	known, up, everGood bool
	failed              time.Time
}

// count says whether the outcome is to be reported.
func (c *counter) count(p *v1.Probe, ok bool, now time.Time, period time.Duration) bool {
	if ok {
		c.good, c.bad, c.everGood, c.failed = c.good+1, 0, true, time.Time{}
		if c.good < max(1, p.SuccessThreshold) || c.known && c.up {
			return false
		}
		c.known, c.up = true, true
		return true
	}
	c.good = 0
	if now.Sub(c.failed) < period {
		return false
	}
	c.bad, c.failed = c.bad+1, now
	if c.bad < threshold(p) {
		return false
	}
	c.known, c.up = true, false
	return true
}

func threshold(p *v1.Probe) int32 {
	if p.FailureThreshold < 1 {
		return 3
	}
	return p.FailureThreshold
}

func seconds(n, without int32) time.Duration {
	if n <= 0 {
		n = without
	}
	return time.Duration(n) * time.Second
}

// wait is false when ctx ends first.
func wait(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// check makes one attempt.
func (t target) check(ctx context.Context, p *v1.Probe) error {
	ctx, cancel := context.WithTimeout(ctx, seconds(p.TimeoutSeconds, 1))
	defer cancel()
	switch {
	case p.HTTPGet != nil:
		return t.httpGet(ctx, p.HTTPGet)
	case p.TCPSocket != nil:
		return t.dial(ctx, p.TCPSocket)
	case p.GRPC != nil:
		return t.grpc(ctx, p.GRPC)
	case p.Exec != nil:
		return t.exec(ctx, p.Exec.Command)
	}
	return errors.New("the probe has no handler")
}

// hook runs a lifecycle hook.
func (t target) hook(ctx context.Context, h *v1.LifecycleHandler) error {
	switch {
	case h.Exec != nil:
		return t.exec(ctx, h.Exec.Command)
	case h.HTTPGet != nil:
		return t.httpGet(ctx, h.HTTPGet)
	case h.TCPSocket != nil:
		return t.dial(ctx, h.TCPSocket)
	case h.Sleep != nil:
		wait(ctx, time.Duration(h.Sleep.Seconds)*time.Second)
		return nil
	}
	return errors.New("the hook has no handler")
}

// port resolves a port that may be a name.
func (t target) port(p intstr.IntOrString) (string, error) {
	if p.Type == intstr.Int {
		return strconv.Itoa(p.IntValue()), nil
	}
	for _, cp := range t.container.Ports {
		if cp.Name == p.StrVal {
			return strconv.Itoa(int(cp.ContainerPort)), nil
		}
	}
	if _, err := strconv.ParseUint(p.StrVal, 10, 16); err == nil {
		return p.StrVal, nil
	}
	return "", fmt.Errorf("container %s has no port named %q", t.container.Name, p.StrVal)
}

func (t target) address(host string, p intstr.IntOrString) (string, error) {
	if host == "" {
		host = t.ip
	}
	port, err := t.port(p)
	return net.JoinHostPort(host, port), err
}

// probeClient trusts any certificate and keeps no connection, as a kubelet's probes do.
var probeClient = &http.Client{
	Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}, //nolint:gosec // a probe asks whether it answers, not who
	CheckRedirect: func(r *http.Request, via []*http.Request) error {
		if r.URL.Hostname() != via[0].URL.Hostname() || len(via) > 10 {
			return http.ErrUseLastResponse
		}
		return nil
	},
}

func (t target) httpGet(ctx context.Context, g *v1.HTTPGetAction) error {
	address, err := t.address(g.Host, g.Port)
	if err != nil {
		return err
	}
	scheme := "http"
	if g.Scheme == v1.URISchemeHTTPS {
		scheme = "https"
	}
	u, err := url.Parse(g.Path)
	if err != nil {
		return fmt.Errorf("path of a probe: %w", err)
	}
	u.Scheme, u.Host = scheme, address
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return fmt.Errorf("making a probe: %w", err)
	}
	request.Header.Set("User-Agent", "kube-probe/1.37")
	for _, h := range g.HTTPHeaders {
		if http.CanonicalHeaderKey(h.Name) == "Host" {
			request.Host = h.Value
		} else {
			request.Header.Add(h.Name, h.Value)
		}
	}
	response, err := probeClient.Do(request)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode < 200 || response.StatusCode >= 400 {
		body, _ := io.ReadAll(io.LimitReader(response.Body, 200)) // only to tell
		return fmt.Errorf("HTTP probe failed with statuscode: %d: %s", response.StatusCode, body)
	}
	return nil
}

func (t target) dial(ctx context.Context, s *v1.TCPSocketAction) error {
	address, err := t.address(s.Host, s.Port)
	if err != nil {
		return err
	}
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	return c.Close()
}

func (t target) grpc(ctx context.Context, g *v1.GRPCAction) error {
	c, err := grpc.NewClient("passthrough:///"+net.JoinHostPort(t.ip, strconv.Itoa(int(g.Port))), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	request := &healthpb.HealthCheckRequest{}
	if g.Service != nil {
		request.Service = *g.Service
	}
	response, err := healthpb.NewHealthClient(c).Check(ctx, request)
	if err != nil {
		return err
	}
	if response.Status != healthpb.HealthCheckResponse_SERVING {
		return fmt.Errorf("service unhealthy (responded with %q)", response.Status)
	}
	return nil
}
