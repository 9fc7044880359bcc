package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/fleetgate/fleetgate/cluster/member"
)

// ReadStatus implements member.Source. It answers from what the watch has seen and from what was written since: no request.
func (s *Source) ReadStatus(_ context.Context, kind, namespace, name string) (status []byte, resourceVersion string, err error) {
	k := kindOf(kind)
	if k == nil || !k.status {
		return nil, "", fmt.Errorf("kind %s has no status here", kind)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	o, ok := s.kept[k].objects[key{namespace, name}]
	switch {
	case !ok && !s.synced:
		return nil, "", fmt.Errorf("member cluster %s has not been seen whole yet", s.name)
	case !ok:
		return nil, "", member.ErrNotFound
	}
	status, err = statusOf(o)
	return status, o.GetResourceVersion(), err
}

// statusOf encodes the status of an object, "null" where it is empty.
func statusOf(o member.Object) ([]byte, error) {
	f := reflect.ValueOf(o).Elem().FieldByName("Status")
	if !f.IsValid() || f.IsZero() {
		return []byte("null"), nil
	}
	return json.Marshal(f.Interface())
}

// WriteStatus implements member.Source. What the caller's types do not know (fields of a newer release, in anybody's entries) stays as it is in the cluster, byte for byte.
func (s *Source) WriteStatus(ctx context.Context, want member.Status) (resourceVersion string, err error) {
	k := kindOf(want.Kind)
	if k == nil || !k.status {
		return "", fmt.Errorf("kind %s has no status here", want.Kind)
	}
	s.mu.Lock()
	version := s.versions[k]
	s.mu.Unlock()
	if version == "" {
		return "", fmt.Errorf("writing the status of %s %s/%s: member cluster %s does not serve this kind: %w", want.Kind, want.Namespace, want.Name, s.name, member.ErrNotFound)
	}
	if err := s.writes.Wait(ctx); err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, request)
	defer cancel()
	base, written, err := s.write(ctx, k, version, want)
	if err != nil {
		return "", fmt.Errorf("writing the status of %s %s/%s in member cluster %s: %w", want.Kind, want.Namespace, want.Name, s.name, sentinel(err))
	}
	s.wrote(k, base, written)
	return written.Metadata.ResourceVersion, nil
}

// write reads the object as it is, and replaces its status if it is still the one that was meant.
func (s *Source) write(ctx context.Context, k *kind, version string, want member.Status) (base string, written object, err error) {
	now, err := s.api.get(ctx, k, version, want.Namespace, want.Name)
	if err != nil {
		return "", object{}, err
	}
	switch {
	case want.UID != "" && want.UID != string(now.Metadata.UID):
		return "", object{}, member.ErrNotFound
	case want.ResourceVersion != "" && want.ResourceVersion != now.Metadata.ResourceVersion:
		return "", object{}, member.ErrConflict
	}
	status, err := overlay(k, now.Status, want.Status)
	if err != nil {
		return "", object{}, err
	}
	written, err = s.api.putStatus(ctx, k, version, now.Metadata, status)
	return now.Metadata.ResourceVersion, written, err
}

// sentinel turns the API server's refusals into what callers branch on.
func sentinel(err error) error {
	switch {
	case apierrors.IsConflict(err):
		return fmt.Errorf("%w: %w", member.ErrConflict, err)
	case apierrors.IsNotFound(err):
		return fmt.Errorf("%w: %w", member.ErrNotFound, err)
	}
	return err
}

// wrote remembers what was written on top of what the watch has shown, until it shows that too: so nobody decides on what he has overwritten himself.
func (s *Source) wrote(k *kind, base string, written object) {
	o := k.object()
	if json.Unmarshal(written.raw, o) != nil {
		return // the watch will show it
	}
	shaped, _ := k.shape(o)
	s.mu.Lock()
	defer s.mu.Unlock()
	id := keyOf(shaped)
	if old, had := s.kept[k].objects[id]; had && old.GetResourceVersion() == base {
		s.kept[k].objects[id] = shaped
	}
}

// overlay is the wanted status with everything of the present one that our type of it does not know.
func overlay(k *kind, present, want []byte) ([]byte, error) {
	if len(present) == 0 {
		return want, nil
	}
	o := k.object()
	if err := json.Unmarshal(slices.Concat([]byte(`{"status":`), present, []byte("}")), o); err != nil {
		return nil, fmt.Errorf("reading the present status: %w", err)
	}
	known, err := statusOf(o)
	if err != nil {
		return nil, err
	}
	var p, n, w any
	for _, d := range []struct {
		raw  []byte
		into *any
	}{{present, &p}, {known, &n}, {want, &w}} {
		if err := json.Unmarshal(d.raw, d.into); err != nil {
			return nil, fmt.Errorf("reading a status: %w", err)
		}
	}
	return json.Marshal(withUnknown(p, n, w))
}

// withUnknown adds to want what present has and known, which is present as our types read it, has not. List entries are found again by their content:
// those that are not ours are handed through unchanged.
func withUnknown(present, known, want any) any {
	if reflect.DeepEqual(known, want) {
		return present
	}
	switch want := want.(type) {
	case map[string]any:
		p, _ := present.(map[string]any)
		n, _ := known.(map[string]any)
		out := make(map[string]any, len(want))
		for name, value := range want {
			out[name] = withUnknown(p[name], n[name], value)
		}
		for name, value := range p {
			if _, is := n[name]; !is && want[name] == nil {
				out[name] = value
			}
		}
		return out
	case []any:
		p, _ := present.([]any)
		n, _ := known.([]any)
		out := make([]any, len(want))
		for i, value := range want {
			out[i] = value
			if at := slices.IndexFunc(n, func(v any) bool { return reflect.DeepEqual(v, value) }); at >= 0 && len(n) == len(p) {
				out[i] = p[at]
			}
		}
		return out
	}
	return want
}
