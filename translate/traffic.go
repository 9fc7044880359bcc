package translate

import (
	"fmt"
	"math"
	"slices"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	gatewayxv1alpha1 "sigs.k8s.io/gateway-api/apisx/v1alpha1"

	"github.com/fleetgate/fleetgate/translate/envoy"
	"github.com/fleetgate/fleetgate/translate/record"
)

// kindTraffic is the policy that limits the retries of a backend's requests (GEP-3388). Like a BackendTLSPolicy it shares the backend's namespace, and is compiled
// into the backend.
const kindTraffic = "XBackendTrafficPolicy"

// trafficPolicies gives the XBackendTrafficPolicies of a namespace that name a backend by its Service, or by what stands in that one's place; the one that counts first.
func trafficPolicies(v *view, namespace, service string) (out []*trafficFact) {
	for _, p := range set[trafficFact](v, input{inputTraffic, namespace, ""}) {
		if slices.ContainsFunc(p.spec.TargetRefs, func(t gatewayv1.LocalPolicyTargetReference) bool { return targeted(t) == service }) {
			out = append(out, p)
		}
	}
	slices.SortStableFunc(out, func(a, b *trafficFact) int { return older(a.identity, b.identity) })
	return out
}

// targeted is the Service that a policy names, or what stands in its place in the names of backends, "" = it is neither a Service nor an XBackend.
func targeted(t gatewayv1.LocalPolicyTargetReference) string {
	switch {
	case t.Group == "" && t.Kind == "Service":
		return string(t.Name)
	case t.Group == gatewayxv1alpha1.GroupName && t.Kind == kindXBackend:
		return xbackendPrefix + string(t.Name)
	}
	return ""
}

// retryBudget is that of a backend, nil where no policy that can be followed gives it one.
func retryBudget(v *view, namespace, service string) *envoy.RetryBudget {
	policies := trafficPolicies(v, namespace, service)
	if len(policies) == 0 {
		return nil
	}
	budget, problems := readTraffic(policies[0].spec)
	if len(problems) > 0 {
		return nil
	}
	return budget
}

// limitRetries gives the cluster of a backend its retry budget, if it has one.
func limitRetries(v *view, k record.Key, c *clusterv3.Cluster) *clusterv3.Cluster {
	if b := retryBudget(v, k.Namespace, serviceOfKey(k)); b != nil && c != nil {
		envoy.LimitRetries(c, *b)
	}
	return c
}

// readTraffic reads what a policy asks for, with what keeps it from being followed.
func readTraffic(spec *gatewayxv1alpha1.BackendTrafficPolicySpec) (*envoy.RetryBudget, []record.Problem) {
	if spec.SessionPersistence != nil {
		return nil, []record.Problem{accepted(string(gatewayv1.PolicyReasonInvalid), "sessionPersistence of an XBackendTrafficPolicy is deprecated and not supported, and nothing of the policy is followed: remove it")}
	}
	if spec.RetryConstraint == nil {
		return nil, nil
	}
	budget, err := readRetryConstraint(spec.RetryConstraint)
	if err != nil {
		return nil, []record.Problem{accepted(string(gatewayv1.PolicyReasonInvalid), fmt.Sprintf("retryConstraint: %v", err))}
	}
	return budget, nil
}

// What a retry constraint is where it does not say, by GEP-3388: the CRD sets these too.
const (
	defaultBudgetPercent  = 20
	defaultBudgetInterval = 10 * time.Second
	defaultRetries        = 10 // of minRetryRate, each second
)

// readRetryConstraint reads a budget. Percent and interval mean to Envoy what they mean to GEP-3388. A rate Envoy does not know, it counts retries that are under way: a
// rate of n each second becomes n at once, which is that rate where a try takes a second, and more where it takes less.
func readRetryConstraint(in *gatewayxv1alpha1.RetryConstraint) (*envoy.RetryBudget, error) {
	out := &envoy.RetryBudget{Percent: defaultBudgetPercent, Interval: defaultBudgetInterval, MinConcurrency: defaultRetries}
	if b := in.Budget; b != nil {
		if b.Percent != nil {
			out.Percent = float64(*b.Percent)
		}
		if b.Interval != nil {
			var err error
			if out.Interval, err = duration("budget.interval", b.Interval); err != nil {
				return nil, err
			}
		}
	}
	if out.Percent < 0 || out.Percent > 100 {
		return nil, fmt.Errorf("budget.percent %v is no percentage: write 0 to 100", out.Percent)
	}
	return out, readMinRetryRate(in.MinRetryRate, out)
}

func readMinRetryRate(in *gatewayxv1alpha1.RequestRate, out *envoy.RetryBudget) error {
	if in == nil {
		return nil
	}
	count, interval := defaultRetries, time.Second
	if in.Count != nil {
		count = *in.Count
	}
	if in.Interval != nil {
		var err error
		if interval, err = duration("minRetryRate.interval", in.Interval); err != nil {
			return err
		}
	}
	if count < 0 || interval <= 0 {
		return fmt.Errorf("minRetryRate of %d in %v is no rate: write a count and an interval above 0", count, interval)
	}
	out.MinConcurrency = uint32(min(math.Ceil(float64(count)/interval.Seconds()), maxRetryConcurrency))
	return nil
}

// maxRetryConcurrency is far above what any proxy has under way.
const maxRetryConcurrency = 1_000_000

// compileTrafficPolicy makes the record of an XBackendTrafficPolicy.
func compileTrafficPolicy(v *view, namespace, name string) record.Policy {
	f := fact[trafficFact](v, kindTraffic, namespace, name)
	out := record.Policy{Object: f.object}
	var lost []record.Problem
	for _, t := range f.spec.TargetRefs {
		p := f.target(v, namespace, t)
		if p != nil {
			lost = append(lost, *p)
		}
		if service := targeted(t); service != "" && !slices.Contains(out.Services, service) {
			out.Services = append(out.Services, service)
		}
	}
	_, problems := readTraffic(f.spec)
	out.Problems = append(ofTargets(lost, len(f.spec.TargetRefs)), problems...)
	return out
}

// target is why a policy does nothing for one of its targets, nil = it does.
func (f *trafficFact) target(v *view, namespace string, t gatewayv1.LocalPolicyTargetReference) *record.Problem {
	var p record.Problem
	switch {
	case targeted(t) == "":
		p = accepted(string(gatewayv1.PolicyReasonTargetNotFound), fmt.Sprintf("target %s %s is no core Service and no XBackend: name one", t.Kind, t.Name))
	case v.read(input{string(t.Kind), namespace, string(t.Name)}) == nil:
		p = accepted(string(gatewayv1.PolicyReasonTargetNotFound), fmt.Sprintf("%s %s does not exist: create it, or name another", t.Kind, t.Name))
	default:
		winner := trafficPolicies(v, namespace, targeted(t))[0]
		if winner == f {
			return nil
		}
		p = conflicted(winner.object, t)
	}
	return &p
}
