// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/validation"
)

// objects is where ConfigMaps, Secrets and Services are looked up; what is missing gives an error that says so.
type objects interface {
	configMap(namespace, name string) (*v1.ConfigMap, error)
	secret(namespace, name string) (*v1.Secret, error)
	services(namespace string) ([]*v1.Service, error)
}

const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// environment is the environment of a container: the image's, the Services', then the container's own, each overriding what comes before.
func environment(pod *v1.Pod, c *v1.Container, image Image, from objects) ([]string, error) {
	e := env{values: map[string]string{}}
	for _, line := range append([]string{defaultPath, "HOSTNAME=" + hostname(pod)}, image.Env...) {
		name, value, _ := strings.Cut(line, "=")
		e.set(name, value)
	}
	if err := e.addServices(pod, from); err != nil {
		return nil, err
	}
	for _, source := range c.EnvFrom {
		if err := e.addAll(pod.Namespace, source, from); err != nil {
			return nil, err
		}
	}
	for _, v := range c.Env {
		value, ok, err := envValue(pod, c, v, e.values, from)
		if err != nil {
			return nil, fmt.Errorf("variable %s: %w", v.Name, err)
		}
		if ok {
			e.set(v.Name, value)
		}
	}
	return e.lines(), nil
}

type env struct {
	values map[string]string
	order  []string
}

func (e *env) set(name, value string) {
	if _, ok := e.values[name]; !ok {
		e.order = append(e.order, name)
	}
	e.values[name] = value
}

func (e *env) lines() []string {
	lines := make([]string, len(e.order))
	for i, name := range e.order {
		lines[i] = name + "=" + e.values[name]
	}
	return lines
}

// addServices adds the variables of the API server's Service and, unless the pod declines, of the Services in its namespace.
func (e *env) addServices(pod *v1.Pod, from objects) error {
	services, err := from.services(metaDefault)
	if err != nil {
		return err
	}
	services = slices.DeleteFunc(slices.Clone(services), func(s *v1.Service) bool { return s.Name != "kubernetes" })
	if pod.Spec.EnableServiceLinks == nil || *pod.Spec.EnableServiceLinks {
		own, err := from.services(pod.Namespace)
		if err != nil {
			return err
		}
		services = append(services, own...)
	}
	for _, s := range services {
		for _, line := range serviceVariables(s) {
			e.set(line[0], line[1])
		}
	}
	return nil
}

const metaDefault = "default"

// serviceVariables are the variables of one Service: NAME_SERVICE_HOST and its kin, and those that Docker links had.
func serviceVariables(s *v1.Service) [][2]string {
	if s.Spec.ClusterIP == "" || s.Spec.ClusterIP == v1.ClusterIPNone || len(s.Spec.Ports) == 0 {
		return nil
	}
	name := variableName(s.Name)
	port := func(p v1.ServicePort) string { return strconv.Itoa(int(p.Port)) }
	first := s.Spec.Ports[0]
	url := func(p v1.ServicePort) string {
		return strings.ToLower(string(p.Protocol)) + "://" + net.JoinHostPort(s.Spec.ClusterIP, port(p))
	}
	out := [][2]string{{name + "_SERVICE_HOST", s.Spec.ClusterIP}, {name + "_SERVICE_PORT", port(first)}, {name + "_PORT", url(first)}}
	for _, p := range s.Spec.Ports {
		if p.Name != "" {
			out = append(out, [2]string{name + "_SERVICE_PORT_" + variableName(p.Name), port(p)})
		}
		prefix := name + "_PORT_" + port(p) + "_" + string(p.Protocol)
		out = append(out, [2]string{prefix, url(p)}, [2]string{prefix + "_PROTO", strings.ToLower(string(p.Protocol))}, [2]string{prefix + "_PORT", port(p)}, [2]string{prefix + "_ADDR", s.Spec.ClusterIP})
	}
	return out
}

func variableName(s string) string { return strings.ToUpper(strings.ReplaceAll(s, "-", "_")) }

// addAll adds all keys of a ConfigMap or a Secret.
func (e *env) addAll(namespace string, source v1.EnvFromSource, from objects) error {
	values := map[string]string{}
	switch {
	case source.ConfigMapRef != nil:
		m, err := from.configMap(namespace, source.ConfigMapRef.Name)
		if err != nil {
			return unlessOptional(err, source.ConfigMapRef.Optional)
		}
		maps.Copy(values, m.Data)
	case source.SecretRef != nil:
		s, err := from.secret(namespace, source.SecretRef.Name)
		if err != nil {
			return unlessOptional(err, source.SecretRef.Optional)
		}
		for k, v := range s.Data {
			values[k] = string(v)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(values)) {
		if name := source.Prefix + key; len(validation.IsEnvVarName(name)) == 0 {
			e.set(name, values[key])
		}
	}
	return nil
}

func unlessOptional(err error, optional *bool) error {
	if optional != nil && *optional {
		return nil
	}
	return err
}

// envValue is the value of one variable; false where an optional source is missing.
func envValue(pod *v1.Pod, c *v1.Container, v v1.EnvVar, sofar map[string]string, from objects) (string, bool, error) {
	if v.ValueFrom == nil {
		return expand(v.Value, sofar), true, nil
	}
	switch source := v.ValueFrom; {
	case source.FieldRef != nil:
		value, err := field(pod, source.FieldRef.FieldPath)
		return value, err == nil, err
	case source.ResourceFieldRef != nil:
		value, err := resourceField(pod, c, source.ResourceFieldRef)
		return value, err == nil, err
	case source.ConfigMapKeyRef != nil:
		ref := source.ConfigMapKeyRef
		m, err := from.configMap(pod.Namespace, ref.Name)
		if err != nil {
			return "", false, unlessOptional(err, ref.Optional)
		}
		value, ok := m.Data[ref.Key]
		return value, ok, missingKey(ok, "ConfigMap", pod.Namespace, ref.Name, ref.Key, ref.Optional)
	case source.SecretKeyRef != nil:
		ref := source.SecretKeyRef
		s, err := from.secret(pod.Namespace, ref.Name)
		if err != nil {
			return "", false, unlessOptional(err, ref.Optional)
		}
		value, ok := s.Data[ref.Key]
		return string(value), ok, missingKey(ok, "Secret", pod.Namespace, ref.Name, ref.Key, ref.Optional)
	}
	return "", false, errors.New("this source of a variable is not supported by a local cluster")
}

func missingKey(ok bool, kind, namespace, name, key string, optional *bool) error {
	if ok {
		return nil
	}
	return unlessOptional(fmt.Errorf("couldn't find key %s in %s %s/%s", key, kind, namespace, name), optional)
}

// expand replaces $(NAME) by the variable's value and $$ by $; a reference to an unknown variable stays as it is.
func expand(s string, values map[string]string) string {
	var out strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '$' || i+1 == len(s) {
			out.WriteByte(s[i])
			continue
		}
		if s[i+1] == '$' {
			out.WriteByte('$')
			i++
			continue
		}
		end := strings.IndexByte(s[i:], ')')
		if s[i+1] != '(' || end < 0 {
			out.WriteByte('$')
			continue
		}
		reference := s[i : i+end+1]
		if value, ok := values[reference[2:len(reference)-1]]; ok {
			out.WriteString(value)
		} else {
			out.WriteString(reference)
		}
		i += end
	}
	return out.String()
}

// field is a value of the downward API.
func field(pod *v1.Pod, path string) (string, error) {
	if name, key, ok := strings.Cut(path, "['"); ok {
		key = strings.TrimSuffix(key, "']")
		switch name {
		case "metadata.labels":
			return pod.Labels[key], nil
		case "metadata.annotations":
			return pod.Annotations[key], nil
		}
	}
	values := map[string]func() string{
		"metadata.name":           func() string { return pod.Name },
		"metadata.namespace":      func() string { return pod.Namespace },
		"metadata.uid":            func() string { return string(pod.UID) },
		"metadata.labels":         func() string { return formatMap(pod.Labels) },
		"metadata.annotations":    func() string { return formatMap(pod.Annotations) },
		"spec.nodeName":           func() string { return pod.Spec.NodeName },
		"spec.serviceAccountName": func() string { return pod.Spec.ServiceAccountName },
		"status.podIP":            func() string { return pod.Status.PodIP },
		"status.podIPs":           func() string { return pod.Status.PodIP },
		"status.hostIP":           func() string { return pod.Status.HostIP },
		"status.hostIPs":          func() string { return pod.Status.HostIP },
	}
	value, ok := values[path]
	if !ok {
		return "", fmt.Errorf("the downward API has no field %q", path)
	}
	return value(), nil
}

// formatMap writes labels as the downward API does, one key="value" a line.
func formatMap(m map[string]string) string {
	var out strings.Builder
	for _, key := range slices.Sorted(maps.Keys(m)) {
		fmt.Fprintf(&out, "%s=%q\n", key, m[key])
	}
	return out.String()
}

// resourceField is a container's limit or request, or what the node has where no limit is set, in units of the divisor, rounded up.
func resourceField(pod *v1.Pod, c *v1.Container, ref *v1.ResourceFieldSelector) (string, error) {
	if ref.ContainerName != "" {
		if c = findContainer(pod, ref.ContainerName); c == nil {
			return "", fmt.Errorf("the pod has no container %q", ref.ContainerName)
		}
	}
	kind, name, _ := strings.Cut(ref.Resource, ".")
	resources := map[string]v1.ResourceList{"limits": c.Resources.Limits, "requests": c.Resources.Requests}[kind]
	quantity, ok := resources[v1.ResourceName(name)]
	if !ok && kind == "limits" {
		quantity = nodeResources()[v1.ResourceName(name)]
	}
	divisor := ref.Divisor
	if divisor.IsZero() {
		divisor = resource.MustParse("1")
	}
	if name == string(v1.ResourceCPU) {
		return strconv.FormatInt(divideUp(quantity.MilliValue(), divisor.MilliValue()), 10), nil
	}
	return strconv.FormatInt(divideUp(quantity.Value(), divisor.Value()), 10), nil
}

func divideUp(a, b int64) int64 {
	if b <= 0 { // a divisor below the smallest unit
		return a
	}
	return (a + b - 1) / b
}

func findContainer(pod *v1.Pod, name string) *v1.Container {
	for _, list := range [][]v1.Container{pod.Spec.Containers, pod.Spec.InitContainers} {
		for i := range list {
			if list[i].Name == name {
				return &list[i]
			}
		}
	}
	return nil
}

func hostname(pod *v1.Pod) string {
	name := pod.Name
	if pod.Spec.Hostname != "" {
		name = pod.Spec.Hostname
	}
	if len(name) > 63 { // what a kernel takes is 64; a label of DNS is 63
		name = strings.TrimRight(name[:63], "-.")
	}
	return name
}
