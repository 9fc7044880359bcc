// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/fleetgate/fleetgate/loadtest/kube/container"
)

// token is a service-account token that a pod holds.
type token struct {
	value           string
	issued, expires time.Time
}

// stale says that a token should be replaced: after 80 % of its life, or a day.
func (t token) stale(now time.Time) bool {
	return now.After(t.issued.Add(t.expires.Sub(t.issued)*4/5)) || now.After(t.issued.Add(24*time.Hour))
}

// volumes puts the volumes of one pod onto the machine's file system. Its methods are called by one goroutine.
type volumes struct {
	k   *kubelet
	dir string
	// places is where each volume is, by its name.
	places map[string]string
	// tokens are kept by volume and path.
	tokens map[string]token
}

// mount makes all volumes of the pod, or brings those up to date that follow an object. It can be repeated until it succeeds, as the objects may come after the pod.
func (v *volumes) mount(ctx context.Context, pod *v1.Pod) error {
	var errs []error
	for i := range pod.Spec.Volumes {
		volume := &pod.Spec.Volumes[i]
		place, err := v.mountOne(ctx, pod, volume)
		if err != nil {
			errs = append(errs, fmt.Errorf("volume %q: %w", volume.Name, err))
			continue
		}
		v.places[volume.Name] = place
	}
	return errors.Join(errs...)
}

func (v *volumes) mountOne(ctx context.Context, pod *v1.Pod, volume *v1.Volume) (string, error) {
	switch source := volume.VolumeSource; {
	case source.HostPath != nil:
		return source.HostPath.Path, hostPath(source.HostPath)
	case source.PersistentVolumeClaim != nil:
		return v.k.claimPlace(pod.Namespace, source.PersistentVolumeClaim.ClaimName)
	case source.Ephemeral != nil:
		return v.k.claimPlace(pod.Namespace, pod.Name+"-"+volume.Name)
	}
	dir := filepath.Join(v.dir, volume.Name)
	if volume.EmptyDir != nil {
		return dir, emptyDir(dir, pod)
	}
	files, err := v.content(ctx, pod, volume)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("making a volume: %w", err)
	}
	group := -1
	if g, ok := fsGroup(pod); ok {
		group = g
		for name, f := range files {
			files[name] = file{data: f.data, mode: f.mode | 0o440}
		}
	}
	return dir, writeFiles(dir, files, group)
}

// emptyDir outlives restarts of the pod's containers and of the kubelet, not the pod.
func emptyDir(dir string, pod *v1.Pod) error {
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return fmt.Errorf("making a volume: %w", err)
	}
	return openTo(dir, pod)
}

// fsGroup is the group that the pod's volumes belong to, where it names one and there is more than one.
func fsGroup(pod *v1.Pod) (int, bool) {
	s := pod.Spec.SecurityContext
	if s == nil || s.FSGroup == nil || container.OneUser() {
		return 0, false
	}
	return int(*s.FSGroup), true
}

// openTo lets the pod's users write to a directory.
func openTo(dir string, pod *v1.Pod) error {
	mode := fs.FileMode(0o777)
	if group, ok := fsGroup(pod); ok {
		if err := os.Chown(dir, -1, group); err != nil {
			return fmt.Errorf("giving a volume to group %d: %w", group, err)
		}
		mode |= fs.ModeSetgid
	}
	if err := os.Chmod(dir, mode); err != nil {
		return fmt.Errorf("opening a volume: %w", err)
	}
	return nil
}

func hostPath(source *v1.HostPathVolumeSource) error {
	kind := v1.HostPathUnset
	if source.Type != nil {
		kind = *source.Type
	}
	switch kind {
	case v1.HostPathDirectoryOrCreate:
		return os.MkdirAll(source.Path, 0o755)
	case v1.HostPathFileOrCreate:
		f, err := os.OpenFile(source.Path, os.O_CREATE|os.O_RDONLY, 0o644)
		if err != nil {
			return err
		}
		return f.Close()
	}
	_, err := os.Stat(source.Path)
	return err
}

// content is what the files of a volume hold.
func (v *volumes) content(ctx context.Context, pod *v1.Pod, volume *v1.Volume) (map[string]file, error) {
	switch source := volume.VolumeSource; {
	case source.ConfigMap != nil:
		c := source.ConfigMap
		return configMapFiles(v.k, pod.Namespace, c.Name, c.Items, mode(c.DefaultMode), c.Optional)
	case source.Secret != nil:
		s := source.Secret
		return secretFiles(v.k, pod.Namespace, s.SecretName, s.Items, mode(s.DefaultMode), s.Optional)
	case source.DownwardAPI != nil:
		return downwardFiles(pod, source.DownwardAPI.Items, mode(source.DownwardAPI.DefaultMode))
	case source.Projected != nil:
		return v.projected(ctx, pod, volume.Name, source.Projected)
	}
	return nil, errors.New("volumes of this kind are not supported by a local cluster: use emptyDir, hostPath, configMap, secret, downwardAPI, projected or persistentVolumeClaim")
}

func (v *volumes) projected(ctx context.Context, pod *v1.Pod, name string, p *v1.ProjectedVolumeSource) (map[string]file, error) {
	files, m := map[string]file{}, mode(p.DefaultMode)
	for _, source := range p.Sources {
		var more map[string]file
		var err error
		switch {
		case source.ConfigMap != nil:
			more, err = configMapFiles(v.k, pod.Namespace, source.ConfigMap.Name, source.ConfigMap.Items, m, source.ConfigMap.Optional)
		case source.Secret != nil:
			more, err = secretFiles(v.k, pod.Namespace, source.Secret.Name, source.Secret.Items, m, source.Secret.Optional)
		case source.DownwardAPI != nil:
			more, err = downwardFiles(pod, source.DownwardAPI.Items, m)
		case source.ServiceAccountToken != nil:
			more, err = v.tokenFile(ctx, pod, name, source.ServiceAccountToken, m)
		default:
			err = errors.New("this source of a projected volume is not supported by a local cluster: use configMap, secret, downwardAPI or serviceAccountToken")
		}
		if err != nil {
			return nil, err
		}
		maps.Copy(files, more)
	}
	return files, nil
}

// tokenFile asks for a token, or keeps the one there is while it is fresh, or while the API server cannot be asked.
func (v *volumes) tokenFile(ctx context.Context, pod *v1.Pod, volume string, p *v1.ServiceAccountTokenProjection, m fs.FileMode) (map[string]file, error) {
	key := volume + "/" + p.Path
	held, ok := v.tokens[key]
	if !ok || held.stale(time.Now()) {
		fresh, err := v.requestToken(ctx, pod, p)
		switch {
		case err == nil:
			held = fresh
			v.tokens[key] = fresh
		case !ok:
			return nil, err
		default:
			v.k.Log.Warn("cannot renew a service-account token", "namespace", pod.Namespace, "pod", pod.Name, "error", err)
		}
	}
	return map[string]file{p.Path: {data: []byte(held.value), mode: m}}, nil
}

func (v *volumes) requestToken(ctx context.Context, pod *v1.Pod, p *v1.ServiceAccountTokenProjection) (token, error) {
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
		ExpirationSeconds: p.ExpirationSeconds,
		BoundObjectRef:    &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID},
	}}
	if p.Audience != "" {
		request.Spec.Audiences = []string{p.Audience}
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	issued := time.Now()
	answer, err := v.k.client.CoreV1().ServiceAccounts(pod.Namespace).CreateToken(ctx, pod.Spec.ServiceAccountName, request, metav1.CreateOptions{})
	if err != nil {
		return token{}, fmt.Errorf("requesting a token of service account %s: %w", pod.Spec.ServiceAccountName, err)
	}
	return token{value: answer.Status.Token, issued: issued, expires: answer.Status.ExpirationTimestamp.Time}, nil
}

// renewal is when the first token has to be replaced; false without tokens.
func (v *volumes) renewal() (time.Time, bool) {
	var first time.Time
	for _, t := range v.tokens {
		due := t.issued.Add(min(t.expires.Sub(t.issued)*4/5, 24*time.Hour))
		if first.IsZero() || due.Before(first) {
			first = due
		}
	}
	return first, len(v.tokens) > 0
}

func mode(m *int32) fs.FileMode {
	if m == nil {
		return 0o644
	}
	return fs.FileMode(*m) & 0o777
}

func configMapFiles(from objects, namespace, name string, items []v1.KeyToPath, m fs.FileMode, optional *bool) (map[string]file, error) {
	c, err := from.configMap(namespace, name)
	if err != nil {
		return nil, unlessOptional(err, optional)
	}
	data := map[string][]byte{}
	for k, s := range c.Data {
		data[k] = []byte(s)
	}
	maps.Copy(data, c.BinaryData)
	return keyFiles("ConfigMap "+namespace+"/"+name, data, items, m, optional)
}

func secretFiles(from objects, namespace, name string, items []v1.KeyToPath, m fs.FileMode, optional *bool) (map[string]file, error) {
	s, err := from.secret(namespace, name)
	if err != nil {
		return nil, unlessOptional(err, optional)
	}
	return keyFiles("Secret "+namespace+"/"+name, s.Data, items, m, optional)
}

// keyFiles are all keys, or those that items choose.
func keyFiles(of string, data map[string][]byte, items []v1.KeyToPath, m fs.FileMode, optional *bool) (map[string]file, error) {
	files := map[string]file{}
	if len(items) == 0 {
		for key, value := range data {
			files[key] = file{data: value, mode: m}
		}
		return files, nil
	}
	for _, item := range items {
		value, ok := data[item.Key]
		if !ok {
			if optional != nil && *optional {
				continue
			}
			return nil, fmt.Errorf("%s has no key %q", of, item.Key)
		}
		f := file{data: value, mode: m}
		if item.Mode != nil {
			f.mode = mode(item.Mode)
		}
		files[item.Path] = f
	}
	return files, nil
}

func downwardFiles(pod *v1.Pod, items []v1.DownwardAPIVolumeFile, m fs.FileMode) (map[string]file, error) {
	files := map[string]file{}
	for _, item := range items {
		var value string
		var err error
		if item.FieldRef != nil {
			value, err = field(pod, item.FieldRef.FieldPath)
		} else if item.ResourceFieldRef != nil {
			value, err = resourceField(pod, &pod.Spec.Containers[0], item.ResourceFieldRef)
		}
		if err != nil {
			return nil, err
		}
		f := file{data: []byte(value), mode: m}
		if item.Mode != nil {
			f.mode = mode(item.Mode)
		}
		files[item.Path] = f
	}
	return files, nil
}

// mountsOf is what a container sees of the pod's volumes.
func (v *volumes) mountsOf(c *v1.Container, places map[string]string, values map[string]string) ([]container.Mount, error) {
	var mounts []container.Mount
	for _, m := range c.VolumeMounts {
		place, ok := places[m.Name]
		if !ok {
			return nil, fmt.Errorf("volume %q is not mounted", m.Name)
		}
		sub := m.SubPath
		if m.SubPathExpr != "" {
			sub = expand(m.SubPathExpr, values)
		}
		source, err := subPath(place, sub)
		if err != nil {
			return nil, fmt.Errorf("volume %q: %w", m.Name, err)
		}
		mounts = append(mounts, container.Mount{Source: source, Target: filepath.Join("/", m.MountPath), ReadOnly: m.ReadOnly})
	}
	return mounts, nil
}

// subPath is a path within a volume, followed through links but never out of the volume, made as a directory where it is missing.
func subPath(place, sub string) (string, error) {
	place, err := filepath.EvalSymlinks(place)
	if err != nil || sub == "" {
		return place, err
	}
	path := filepath.Join(place, filepath.Join("/", sub))
	resolved, err := filepath.EvalSymlinks(path)
	if errors.Is(err, fs.ErrNotExist) {
		return path, os.MkdirAll(path, 0o777)
	}
	if err != nil {
		return "", err
	}
	if resolved != place && !strings.HasPrefix(resolved, place+"/") {
		return "", fmt.Errorf("subPath %q leads out of the volume", sub)
	}
	return resolved, nil
}

// place is where a pod's own files are.
func (k *kubelet) place(uid types.UID) string { return filepath.Join(k.Dir, "pods", string(uid)) }
