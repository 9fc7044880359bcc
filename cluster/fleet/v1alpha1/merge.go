package v1alpha1

import (
	"errors"
	"fmt"
	"net"
	"strconv"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Merge joins the wishes of a Gateway with those of its GatewayClass: each field of the spec comes from over where over sets it, else whole from base.
// Nothing is joined inside a field, so that what a Gateway's EnvoyFleet says can be read off it. Replicas, autoscaling and kind exclude
// each other, so they are one choice: over's replicas take base's autoscaling away, and the other way round.
func Merge(base, over EnvoyFleetSpec) EnvoyFleetSpec {
	out := base
	if over.Replicas != nil || over.Autoscaling != nil {
		out.Replicas, out.Autoscaling = over.Replicas, over.Autoscaling
	}
	if over.Kind != nil {
		out.Kind = over.Kind
		if *over.Kind == KindDaemonSet {
			out.Replicas, out.Autoscaling = over.Replicas, over.Autoscaling
		}
	}
	take(&out.Image, over.Image)
	take(&out.Resources, over.Resources)
	take(&out.Service, over.Service)
	take(&out.Placement, over.Placement)
	take(&out.Concurrency, over.Concurrency)
	take(&out.AccessLog, over.AccessLog)
	take(&out.Drain, over.Drain)
	take(&out.Admin, over.Admin)
	take(&out.Unreadable, over.Unreadable)
	return out
}

func take[T any](to **T, from *T) {
	if from != nil {
		*to = from
	}
}

// Validate says everything that is wrong with a spec. The CRD's schema refuses the same; this is for what was merged, and for objects that
// were stored before a schema knew better.
func (s EnvoyFleetSpec) Validate() error {
	if s.Unreadable != nil {
		return fmt.Errorf("spec cannot be read (%s): correct that field", *s.Unreadable)
	}
	var errs []error
	wrong := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	kind := value(s.Kind, KindDeployment)
	switch {
	case kind != KindDeployment && kind != KindDaemonSet:
		wrong("spec.kind %q: write Deployment or DaemonSet", kind)
	case kind == KindDaemonSet && (s.Replicas != nil || s.Autoscaling != nil):
		wrong("spec.kind DaemonSet has one Envoy on each node: remove replicas and autoscaling")
	case s.Replicas != nil && s.Autoscaling != nil:
		wrong("spec.replicas and spec.autoscaling exclude each other: remove one")
	}
	if value(s.Replicas, 1) < 0 {
		wrong("spec.replicas %d: write 0 or more", *s.Replicas)
	}
	if c := value(s.Concurrency, 1); c < 1 || c > 1024 {
		wrong("spec.concurrency %d: write 1 to 1024", c)
	}
	if admin := value(s.Admin, AdminOff); admin != AdminOn && admin != AdminOff {
		wrong("spec.admin %q: write On or Off", admin)
	}
	errs = append(errs, s.Autoscaling.validate(), s.AccessLog.validate(), s.Drain.validate(), s.Service.validate())
	return errors.Join(errs...)
}

func (a *Autoscaling) validate() error {
	if a == nil {
		return nil
	}
	least := value(a.MinReplicas, 1)
	if least < 1 || a.MaxReplicas < least {
		return fmt.Errorf("spec.autoscaling: minReplicas %d and maxReplicas %d: write 1 or more, and the larger one last", least, a.MaxReplicas)
	}
	if p := value(a.TargetCPUUtilization, 70); p < 1 {
		return fmt.Errorf("spec.autoscaling.targetCPUUtilization %d: write a percentage above 0", p)
	}
	return nil
}

func (s *Service) validate() error {
	if s == nil || s.Type == nil {
		return nil
	}
	switch *s.Type {
	case "LoadBalancer", "NodePort", "ClusterIP":
		return nil
	}
	return fmt.Errorf("spec.service.type %q: write LoadBalancer, NodePort or ClusterIP", *s.Type)
}

func (l *AccessLog) validate() error {
	if l == nil {
		return nil
	}
	switch l.Type {
	case AccessLogOff, AccessLogText, AccessLogJSON:
		if l.Collector != nil {
			return fmt.Errorf("spec.accessLog.collector is for type OTLP: remove it, or write type: OTLP")
		}
	case AccessLogOTLP:
		host, port, err := net.SplitHostPort(value(l.Collector, ""))
		if n, bad := strconv.ParseUint(port, 10, 16); err != nil || bad != nil || n == 0 || host == "" {
			return fmt.Errorf("spec.accessLog.collector %q: write host:port of an OTLP/gRPC collector", value(l.Collector, ""))
		}
	default:
		return fmt.Errorf("spec.accessLog.type %q: write Text, JSON, OTLP or Off", l.Type)
	}
	if l.Format != nil && l.Type != AccessLogText {
		return fmt.Errorf("spec.accessLog.format is for type Text: write fields for type %s", l.Type)
	}
	if len(l.Fields) > 0 && (l.Type == AccessLogText || l.Type == AccessLogOff) {
		return fmt.Errorf("spec.accessLog.fields are for types JSON and OTLP: write format for type Text")
	}
	return nil
}

func (d *Drain) validate() error {
	if d == nil {
		return nil
	}
	for _, t := range []struct {
		name string
		of   *metav1.Duration
	}{{"delay", d.Delay}, {"timeout", d.Timeout}} {
		if t.of != nil && (t.of.Duration < 0 || t.of.Hours() > 24) {
			return fmt.Errorf("spec.drain.%s %s: write 0s to 24h", t.name, t.of.Duration)
		}
	}
	return nil
}

func value[T any](p *T, fallback T) T {
	if p == nil {
		return fallback
	}
	return *p
}
