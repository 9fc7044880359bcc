package translate

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	gatewayxv1alpha1 "sigs.k8s.io/gateway-api/apisx/v1alpha1"

	"github.com/fleetgate/fleetgate/translate/record"
)

// kindTelemetry is the policy that has a Gateway's requests traced (GEP-4768). It shares the Gateway's namespace, and is compiled into the Gateway.
const kindTelemetry = "XTelemetryPolicy"

// telemetryPolicies gives the XTelemetryPolicies of a namespace that name a Gateway, the one that counts first.
func telemetryPolicies(v *view, namespace, gateway string) (out []*telemetryFact) {
	for _, p := range set[telemetryFact](v, input{inputTelemetry, namespace, ""}) {
		if slices.ContainsFunc(p.spec.TargetRefs, func(t gatewayv1.LocalObjectReference) bool { return isGateway(t) && string(t.Name) == gateway }) {
			out = append(out, p)
		}
	}
	slices.SortStableFunc(out, func(a, b *telemetryFact) int { return older(a.identity, b.identity) })
	return out
}

func isGateway(t gatewayv1.LocalObjectReference) bool {
	return t.Group == gatewayv1.GroupName && t.Kind == "Gateway"
}

// compileTracing gives how a Gateway's requests are traced, nil = not at all, which is also what an implementation's default means here.
func compileTracing(v *view, object record.Object) *record.Tracing {
	policies := telemetryPolicies(v, object.Namespace, object.Name)
	if len(policies) == 0 {
		return nil
	}
	tracing, problems := readTelemetry(v, policies[0])
	if len(problems) > 0 {
		return nil
	}
	return tracing
}

// readTelemetry reads what a policy asks for, with what keeps it from being followed.
func readTelemetry(v *view, f *telemetryFact) (*record.Tracing, []record.Problem) {
	in := &f.spec.Tracing
	switch in.Mode {
	case gatewayxv1alpha1.TracingModeEnabled:
	case "", gatewayxv1alpha1.TracingModeDisabled, gatewayxv1alpha1.TracingModeImplementationDefault:
		return nil, nil
	default:
		return nil, []record.Problem{accepted("Invalid", fmt.Sprintf("tracing.mode %s is not supported: use Enabled or Disabled", in.Mode))}
	}
	out := &record.Tracing{ServiceName: cmp.Or(in.ServiceName, f.object.Namespace+"/"+f.object.Name), SpanName: in.SpanName, Rate: record.Rate{Numerator: 1, Denominator: 1}}
	var problems []record.Problem
	refuse := func(err error) {
		if err != nil {
			problems = append(problems, accepted("Invalid", "tracing: "+err.Error()))
		}
	}
	collector, problem := resolveBackend(v, f.object, in.Provider.BackendRef, consumerH2)
	if problem != nil {
		problems = append(problems, *problem)
	}
	if out.Collector = collector; problem == nil {
		out.Authority = authority(v, collector)
	}
	for _, h := range in.Provider.Headers {
		if strings.Contains(h.Value, "%") {
			refuse(fmt.Errorf("a value with a %% in header %s is not supported: proxies take it for a command", h.Name))
		}
		out.Headers = append(out.Headers, record.Pair{Name: strings.ToLower(string(h.Name)), Value: string(h.Value)})
	}
	var err error
	if in.SamplingRate != nil {
		out.Rate, err = rate("samplingRate", in.SamplingRate)
		refuse(err)
	}
	refuse(readParents(&in.ParentBasedSampling, out))
	for _, a := range in.Attributes {
		attribute, err := readAttribute(a)
		refuse(err)
		out.Attributes = append(out.Attributes, attribute)
	}
	return out, problems
}

// rate reads a fraction of at most 1.
func rate(field string, in *gatewayv1.Fraction) (record.Rate, error) {
	out := record.Rate{Numerator: in.Numerator, Denominator: 100}
	if in.Denominator != nil {
		out.Denominator = *in.Denominator
	}
	if out.Denominator <= 0 || out.Numerator < 0 || out.Numerator > out.Denominator {
		return out, fmt.Errorf("%s %d/%d is no share: write a fraction of 0 to 1", field, out.Numerator, out.Denominator)
	}
	return out, nil
}

// readParents reads what the sampling of a caller's span means; by default it is respected.
func readParents(in *gatewayxv1alpha1.ParentBasedSampling, out *record.Tracing) error {
	switch in.Mode {
	case "", gatewayxv1alpha1.ParentBasedSamplingModeImplementationDefault, gatewayxv1alpha1.ParentBasedSamplingModeEnabled:
	case gatewayxv1alpha1.ParentBasedSamplingModeDisabled:
		out.IgnoreParent = true
	default:
		return fmt.Errorf("parentBasedSampling.mode %s is not supported: use Enabled or Disabled", in.Mode)
	}
	if in.SamplingRate == nil {
		return nil
	}
	r, err := rate("parentBasedSampling.samplingRate", in.SamplingRate)
	if err == nil && r.Numerator != r.Denominator {
		err = fmt.Errorf("parentBasedSampling.samplingRate below 1 is not supported: remove it")
	}
	return err
}

// semantic are the attributes of OpenTelemetry's conventions whose values proxies have, as commands of Envoy's format.
var semantic = map[string]string{
	"client.address": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%", "client.port": "%DOWNSTREAM_REMOTE_PORT%", "http.request.method": "%REQ(:METHOD)%", "http.request.body.size": "%BYTES_RECEIVED%",
	"http.response.body.size": "%BYTES_SENT%", "http.response.status_code": "%RESPONSE_CODE%", "http.route": "%ROUTE_NAME%", "network.peer.address": "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%",
	"network.peer.port": "%DOWNSTREAM_DIRECT_REMOTE_PORT%", "server.port": "%DOWNSTREAM_LOCAL_PORT%", "tls.cipher": "%DOWNSTREAM_TLS_CIPHER%", "tls.client.server_name": "%REQUESTED_SERVER_NAME%",
	"url.path": "%PATH(NQ)%", "url.scheme": "%REQ(:SCHEME)%", "user_agent.original": "%REQ(USER-AGENT)%",
}

func readAttribute(in gatewayxv1alpha1.Attribute) (record.Attribute, error) {
	out := record.Attribute{Name: string(in.Name)}
	switch in.SourceType {
	case gatewayxv1alpha1.AttributeSourceHeader:
		out.Header = string(in.HeaderName)
	case gatewayxv1alpha1.AttributeSourceLiteral:
		out.Literal = in.LiteralValue
	case gatewayxv1alpha1.AttributeSourceAttribute:
		if out.Format = semantic[in.AttributeKey]; out.Format == "" {
			return out, fmt.Errorf("attributeKey %s is not supported: use one of %s", in.AttributeKey, strings.Join(slices.Sorted(maps.Keys(semantic)), ", "))
		}
	default:
		return out, fmt.Errorf("sourceType %s is not supported: use Header, Literal or Attribute", in.SourceType)
	}
	if out.Header == "" && out.Literal == "" && out.Format == "" {
		return out, fmt.Errorf("attribute %s has no value: give it one", in.Name)
	}
	return out, nil
}

// compileTelemetryPolicy makes the record of an XTelemetryPolicy.
func compileTelemetryPolicy(v *view, namespace, name string) record.Policy {
	f := fact[telemetryFact](v, kindTelemetry, namespace, name)
	overruled := map[string]record.Problem{}
	out := record.Policy{Object: f.object, Overruled: overruled}
	var lost []record.Problem
	for _, t := range f.spec.TargetRefs {
		if !isGateway(t) {
			lost = append(lost, accepted(string(gatewayv1.PolicyReasonTargetNotFound), fmt.Sprintf("target %s %s is no Gateway: name a Gateway", t.Kind, t.Name)))
			continue
		}
		if !slices.Contains(out.Gateways, string(t.Name)) {
			out.Gateways = append(out.Gateways, string(t.Name))
		}
		if fact[gatewayFact](v, "Gateway", namespace, string(t.Name)) == nil {
			lost = append(lost, accepted(string(gatewayv1.PolicyReasonTargetNotFound), fmt.Sprintf("Gateway %s does not exist: create it, or name another", t.Name)))
			continue
		}
		if winner := telemetryPolicies(v, namespace, string(t.Name))[0]; winner != f {
			p := conflicted(winner.object, gatewayv1.LocalPolicyTargetReference(t))
			lost = append(lost, p)
			overruled[string(t.Name)] = p
		}
	}
	tracing, problems := readTelemetry(v, f)
	if tracing != nil && tracing.Authority != "" {
		out.Collector = &tracing.Collector
	}
	out.Problems = append(ofTargets(lost, len(f.spec.TargetRefs)), problems...)
	return out
}
