// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/fleetgate/fleetgate/loadtest/kube/rig"
)

// replicas is how many deploy/install.yaml has.
const replicas = 3

// kill ends the replicas by SIGKILL, one after another, until ctx ends, and notes each: the time, who died, who led then, and how long the node took to start it again. A replica that
// has not come back when its turn comes is an error, since then no replica dies any more.
func (s suiteRun) kill(ctx context.Context, r *rig.Rig, notes string, progress io.Writer) error {
	if err := os.MkdirAll(filepath.Dir(notes), 0o755); err != nil {
		return fmt.Errorf("note the kills: %w", err)
	}
	f, err := os.Create(notes)
	if err != nil {
		return fmt.Errorf("note the kills: %w", err)
	}
	defer func() { _ = f.Close() }()
	turn := time.NewTicker(s.killEvery)
	defer turn.Stop()
	for n := 0; ; n++ {
		select {
		case <-ctx.Done():
			return nil
		case <-turn.C:
		}
		pod := fmt.Sprintf("fleetgate-%d", n%replicas)
		leader := leaderOf(ctx, r)
		at := time.Now()
		if err := r.KillContainers(ctx, r.Cluster(0).Name, home+"/"+pod); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		line := fmt.Sprintf("%s\t%s\tleader %s\tstarted again after %.1f s", at.UTC().Format(time.RFC3339), pod, leader, time.Since(at).Seconds())
		if _, err := fmt.Fprintln(f, line); err != nil {
			return fmt.Errorf("note the kills: %w", err)
		}
		_, _ = fmt.Fprintln(progress, "killed:", line)
	}
}

// leaderOf asks the replicas who leads; "unknown" where nobody says.
func leaderOf(ctx context.Context, r *rig.Rig) string {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	web := &http.Client{Transport: &http.Transport{DialContext: r.Dial, DisableKeepAlives: true}}
	addresses, err := client{r: r, c: r.Cluster(0), progress: io.Discard}.ask(ctx, "-n", home, "get", "pods", "-l", "app.kubernetes.io/name=fleetgate", "-o", "jsonpath={.items[*].status.podIP}")
	if err != nil {
		return "unknown"
	}
	for address := range strings.FieldsSeq(addresses) {
		if leader := leaderBy(ctx, web, address); leader != "" {
			return leader
		}
	}
	return "unknown"
}

func leaderBy(ctx context.Context, web *http.Client, address string) string {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+":9901/v1/view", nil)
	if err != nil {
		return ""
	}
	resp, err := web.Do(req)
	if err != nil {
		return ""
	}
	defer func() { _ = resp.Body.Close() }()
	var view struct {
		Leader string `json:"leader"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&view); err != nil {
		return ""
	}
	return view.Leader
}
