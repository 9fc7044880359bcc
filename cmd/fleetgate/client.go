package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"unicode"

	"github.com/fleetgate/fleetgate/cluster/store"
)

// defaultAdmin is where a replica's admin port is unless told otherwise.
const defaultAdmin = "127.0.0.1:9901"

// replicasFile lists the admin addresses of the replicas that dev runs; it is in dev's state directory.
const replicasFile = "replicas.json"

// replicaAddresses is what replicasFile holds.
type replicaAddresses struct {
	APIVersion string   `json:"apiVersion"`
	Kind       string   `json:"kind"` // ReplicaAddresses
	Admin      []string `json:"admin"`
}

// servers are the admin addresses to try, in order.
func (a *asking) servers() []string {
	if given := strings.FieldsFunc(a.server, func(r rune) bool { return r == ',' || unicode.IsSpace(r) }); len(given) > 0 {
		return given
	}
	if b, err := os.ReadFile(filepath.Join(defaultState, replicasFile)); err == nil {
		var r replicaAddresses
		if json.Unmarshal(b, &r) == nil && len(r.Admin) > 0 {
			return r.Admin
		}
	}
	return []string{defaultAdmin}
}

// baseURL allows addresses with and without scheme.
func baseURL(server string) string {
	if strings.Contains(server, "://") {
		return strings.TrimRight(server, "/")
	}
	return "http://" + server
}

// view asks one replica after the other. Where one answers with what the leader knows, that is taken; else what any knows.
func (a *asking) view(ctx context.Context) (view, error) {
	var best *view
	var errs []error
	for _, server := range a.servers() {
		v, err := getView(ctx, server, a)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if v.Leader != "" && v.Notice == "" {
			return v, nil
		}
		if best == nil || best.Leader == "" {
			best = &v
		}
	}
	if best != nil {
		return *best, nil
	}
	return view{}, fmt.Errorf("%w: %w; is it running? start one with fleetgate dev, or name one with --server", errNotReached, errors.Join(errs...))
}

// ask gets the view and says beside the output what is wrong with it: what every reading command begins with.
func (a *asking) ask(ctx context.Context) (view, error) {
	v, err := a.view(ctx)
	if err == nil {
		a.warn(v)
	}
	return v, err
}

// warn tells on stderr what the replica wants people to know, such as that nobody leads.
func (a *asking) warn(v view) {
	switch {
	case v.Notice != "":
		_, _ = fmt.Fprintln(a.err, "notice:", v.Notice)
	case v.Leader == "":
		_, _ = fmt.Fprintln(a.err, "notice:", errNoLeader)
	}
}

func getView(ctx context.Context, server string, a *asking) (view, error) {
	var v view
	ctx, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	body, err := get(ctx, baseURL(server)+"/v1/view")
	if err != nil {
		return v, err
	}
	if err := json.Unmarshal(body, &v); err != nil {
		return v, fmt.Errorf("answer of %s: %w; is it a fleetgate replica's admin port?", server, err)
	}
	if v.APIVersion != apiVersion {
		return v, fmt.Errorf("%s speaks %q and this binary %q; use the binary of the replica's version", server, v.APIVersion, apiVersion)
	}
	return v, nil
}

// get reads a page of the admin port; anything but 200 is an error that holds what the page says.
func get(ctx context.Context, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, fmt.Errorf("asking %s: %w", url, err)
	}
	return do(req)
}

func do(req *http.Request) ([]byte, error) {
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 256<<20))
	if err != nil {
		return nil, fmt.Errorf("reading the answer of %s: %w", req.URL, err)
	}
	if resp.StatusCode/100 != 2 {
		return body, fmt.Errorf("%s answered %s: %s", req.URL, resp.Status, strings.TrimSpace(string(body)))
	}
	return body, nil
}

// postFleet tells the group which proxies count for a Gateway.
func postFleet(ctx context.Context, server string, f store.Fleet) error {
	body, err := json.Marshal(fleetRequest{Name: f.Name, Proxies: f.Proxies})
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, baseURL(server)+"/v1/fleets", strings.NewReader(string(body)))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	_, err = do(req)
	return err
}

// fleetRequest is the body of POST /v1/fleets.
type fleetRequest struct {
	Name    string   `json:"name"`
	Proxies []string `json:"proxies"`
}
