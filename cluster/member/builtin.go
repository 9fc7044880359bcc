package member

import (
	"fmt"
	"net/netip"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
)

// The built-in kinds have no schema that could be embedded: their defaults and rules are Go code inside API servers. Here are
// those that decide whether traffic can flow; the rest of such an object is checked for shape only.

func completeService(o Object) {
	spec := &o.(*corev1.Service).Spec
	setDefault(&spec.Type, corev1.ServiceTypeClusterIP)
	setDefault(&spec.SessionAffinity, corev1.ServiceAffinityNone)
	for i := range spec.Ports {
		p := &spec.Ports[i]
		setDefault(&p.Protocol, corev1.ProtocolTCP)
		if p.TargetPort == intstr.FromInt32(0) || p.TargetPort == intstr.FromString("") {
			p.TargetPort = intstr.FromInt32(p.Port)
		}
	}
}

func completeEndpointSlice(o Object) {
	slice := o.(*discoveryv1.EndpointSlice)
	for i := range slice.Ports {
		p := &slice.Ports[i]
		if p.Name == nil {
			p.Name = new(string)
		}
		if p.Protocol == nil {
			tcp := corev1.ProtocolTCP
			p.Protocol = &tcp
		}
	}
}

// completeSecret moves stringData into data, as API servers do on a write.
func completeSecret(o Object) {
	secret := o.(*corev1.Secret)
	setDefault(&secret.Type, corev1.SecretTypeOpaque)
	for k, v := range secret.StringData {
		if secret.Data == nil {
			secret.Data = map[string][]byte{}
		}
		secret.Data[k] = []byte(v)
	}
	secret.StringData = nil
}

func completeDeployment(o Object) {
	d := o.(*appsv1.Deployment)
	if d.Spec.Replicas == nil {
		one := int32(1)
		d.Spec.Replicas = &one
	}
}

func setDefault[T ~string](field *T, value T) {
	if *field == "" {
		*field = value
	}
}

// rules collects the faults of one object; lines are filled in by whoever knows the document.
type rules struct{ faults []fault }

func (r *rules) add(field, format string, args ...any) {
	r.faults = append(r.faults, fault{field: field, message: fmt.Sprintf(format, args...)})
}

// must adds the complaints of a validator of k8s.io/apimachinery.
func (r *rules) must(field, value string, complaints []string, remedy string) {
	for _, c := range complaints {
		r.add(field, "value %q is invalid: %s. %s", value, strings.TrimRight(c, "."), remedy)
	}
}

func (r *rules) port(field string, port int) {
	if complaints := validation.IsValidPortNum(port); len(complaints) > 0 {
		r.add(field, "port %d is invalid: %s. Use a port from 1 to 65535", port, complaints[0])
	}
}

func (r *rules) protocol(field string, p corev1.Protocol) {
	switch p {
	case corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP:
	default:
		r.add(field, "value %q is not supported; supported values: \"TCP\", \"UDP\", \"SCTP\". Use one of these", p)
	}
}

func checkService(o Object) []fault {
	r, spec := &rules{}, &o.(*corev1.Service).Spec
	switch spec.Type {
	case corev1.ServiceTypeClusterIP, corev1.ServiceTypeNodePort, corev1.ServiceTypeLoadBalancer:
	case corev1.ServiceTypeExternalName:
		if spec.ExternalName == "" {
			r.add("spec.externalName", "the field is required for type ExternalName. Add it")
		}
	default:
		r.add("spec.type", "value %q is not supported; supported values: \"ClusterIP\", \"ExternalName\", \"LoadBalancer\", \"NodePort\". Use one of these", spec.Type)
	}
	if len(spec.Ports) == 0 && spec.Type != corev1.ServiceTypeExternalName && spec.ClusterIP != corev1.ClusterIPNone {
		r.add("spec.ports", "the field is required. Add at least one port")
	}
	names, numbers := map[string]bool{}, map[string]bool{}
	for i := range spec.Ports {
		r.servicePort(fmt.Sprintf("spec.ports[%d]", i), &spec.Ports[i], len(spec.Ports) > 1, names, numbers)
	}
	return r.faults
}

func (r *rules) servicePort(path string, p *corev1.ServicePort, nameRequired bool, names, numbers map[string]bool) {
	r.port(path+".port", int(p.Port))
	r.protocol(path+".protocol", p.Protocol)
	if p.TargetPort.Type == intstr.Int {
		r.port(path+".targetPort", p.TargetPort.IntValue())
	} else {
		r.must(path+".targetPort", p.TargetPort.StrVal, validation.IsValidPortName(p.TargetPort.StrVal), "Correct the name")
	}
	switch {
	case p.Name == "" && nameRequired:
		r.add(path+".name", "the field is required where a Service has several ports. Add a name")
	case p.Name != "":
		r.must(path+".name", p.Name, validation.IsDNS1123Label(p.Name), "Correct the name")
		if names[p.Name] {
			r.add(path+".name", "%q is there twice. Rename one of the two", p.Name)
		}
		names[p.Name] = true
	}
	number := fmt.Sprintf("%d/%s", p.Port, p.Protocol)
	if numbers[number] {
		r.add(path, "port %s is there twice. Remove one of the two", number)
	}
	numbers[number] = true
}

func checkEndpointSlice(o Object) []fault {
	r, slice := &rules{}, o.(*discoveryv1.EndpointSlice)
	switch slice.AddressType {
	case discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6, discoveryv1.AddressTypeFQDN:
	default:
		r.add("addressType", "value %q is not supported; supported values: \"IPv4\", \"IPv6\", \"FQDN\". Use one of these", slice.AddressType)
	}
	if len(slice.Endpoints) > 1000 {
		r.add("endpoints", "%d endpoints are too many: an EndpointSlice holds at most 1000. Split it", len(slice.Endpoints))
	}
	for i, e := range slice.Endpoints {
		path := fmt.Sprintf("endpoints[%d].addresses", i)
		if len(e.Addresses) == 0 || len(e.Addresses) > 100 {
			r.add(path, "an endpoint has 1 to 100 addresses, this one has %d. Correct the list", len(e.Addresses))
		}
		for j, a := range e.Addresses {
			r.address(fmt.Sprintf("%s[%d]", path, j), a, slice.AddressType)
		}
	}
	for i, p := range slice.Ports {
		path := fmt.Sprintf("ports[%d]", i)
		if p.Port != nil {
			r.port(path+".port", int(*p.Port))
		}
		r.protocol(path+".protocol", *p.Protocol)
	}
	return r.faults
}

func (r *rules) address(path, address string, as discoveryv1.AddressType) {
	if as == discoveryv1.AddressTypeFQDN {
		r.must(path, address, validation.IsDNS1123Subdomain(address), "Correct the name")
		return
	}
	ip, err := netip.ParseAddr(address)
	if err != nil || ip.Is4() != (as == discoveryv1.AddressTypeIPv4) || ip.Zone() != "" {
		r.add(path, "%q is no %s address. Correct it, or change addressType", address, as)
	}
}

func checkSecret(o Object) []fault {
	r, secret := &rules{}, o.(*corev1.Secret)
	for k := range secret.Data {
		r.must("data["+k+"]", k, validation.IsConfigMapKey(k), "Rename the key")
	}
	if secret.Type == corev1.SecretTypeTLS {
		for _, k := range []string{corev1.TLSCertKey, corev1.TLSPrivateKeyKey} {
			if _, ok := secret.Data[k]; !ok {
				r.add("data["+k+"]", "the key is required for type %s. Add it", secret.Type)
			}
		}
	}
	return r.faults
}

func checkConfigMap(o Object) []fault {
	r, m := &rules{}, o.(*corev1.ConfigMap)
	for k := range m.Data {
		r.must("data["+k+"]", k, validation.IsConfigMapKey(k), "Rename the key")
	}
	for k := range m.BinaryData {
		r.must("binaryData["+k+"]", k, validation.IsConfigMapKey(k), "Rename the key")
		if _, twice := m.Data[k]; twice {
			r.add("binaryData["+k+"]", "the key is in data too. Remove one of the two")
		}
	}
	return r.faults
}

func checkDeployment(o Object) []fault {
	r, d := &rules{}, o.(*appsv1.Deployment)
	if *d.Spec.Replicas < 0 {
		r.add("spec.replicas", "%d is negative. Use 0 or more", *d.Spec.Replicas)
	}
	r.containers("spec.template.spec.containers", d.Spec.Template.Spec.Containers)
	if d.Spec.Selector == nil {
		r.add("spec.selector", "the field is required. Add matchLabels with labels of spec.template")
		return r.faults
	}
	selector, err := metav1.LabelSelectorAsSelector(d.Spec.Selector)
	switch {
	case err != nil:
		r.add("spec.selector", "the selector is invalid: %v. Correct it", err)
	case selector.Empty() || !selector.Matches(labels.Set(d.Spec.Template.Labels)):
		r.add("spec.selector", "the selector does not match the labels of spec.template. Make them agree")
	}
	return r.faults
}

func checkPod(o Object) []fault {
	r := &rules{}
	r.containers("spec.containers", o.(*corev1.Pod).Spec.Containers)
	return r.faults
}

func (r *rules) containers(path string, containers []corev1.Container) {
	if len(containers) == 0 {
		r.add(path, "the field is required. Add at least one container")
	}
	for i, c := range containers {
		at := fmt.Sprintf("%s[%d]", path, i)
		r.must(at+".name", c.Name, validation.IsDNS1123Label(c.Name), "Correct the name")
		if c.Image == "" {
			r.add(at+".image", "the field is required. Add it")
		}
		for j, p := range c.Ports {
			r.port(fmt.Sprintf("%s.ports[%d].containerPort", at, j), int(p.ContainerPort))
		}
	}
}
