package translate

import (
	"fmt"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/fleetgate/fleetgate/translate/envoy"
	"github.com/fleetgate/fleetgate/translate/record"
)

// Filters of a listener (GEP-5224) run on every request that it takes, in the order of their list and before a route is chosen. They fail closed: where one of them
// cannot run, none does, and the listener answers 500. Any order of what is supported can be kept, so nobody is told InvalidListenerFilterOrder.
const (
	reasonListenerFilter    = "InvalidListenerFilter"    // of Accepted
	reasonListenerFilterRef = "InvalidListenerFilterRef" // of ResolvedRefs
)

// compileFilters reads the filters of a listener, if it has some.
func compileFilters(v *view, owner record.Object, l *gatewayv1.Listener, out *record.Listener) {
	if l.Filters == nil || len(l.Filters.Requests) == 0 {
		return
	}
	if l.Protocol != gatewayv1.HTTPProtocolType && l.Protocol != gatewayv1.HTTPSProtocolType {
		out.Problems = append(out.Problems, accepted(reasonListenerFilter, fmt.Sprintf("filters of a listener of protocol %s see no requests, and nothing is served without them: remove them, or use HTTP or HTTPS", l.Protocol)))
		return
	}
	if n := len(l.Filters.Requests); n > envoy.ListenerSlots {
		out.Problems = append(out.Problems, accepted("UnsupportedValue", fmt.Sprintf("%d filters are not supported: use at most %d", n, envoy.ListenerSlots)))
		return
	}
	filters := &record.Filters{}
	for i := range l.Filters.Requests {
		auth, server, problems := readListenerFilter(v, owner, &l.Filters.Requests[i])
		for _, p := range problems {
			p.Message = fmt.Sprintf("filters.requests[%d]: %s", i, p.Message)
			filters.Problems = append(filters.Problems, p)
		}
		if len(problems) == 0 {
			filters.Run = append(filters.Run, record.Filter{Config: mustBytes(envoy.Authorize(auth)), Backend: server})
		}
	}
	if len(filters.Problems) > 0 {
		filters.Run = nil
	}
	out.Filters = filters
}

// readListenerFilter reads a filter with the server that it asks, or says what is wrong with it.
func readListenerFilter(v *view, owner record.Object, f *gatewayv1.ListenerFilter) (envoy.Authorization, record.Key, []record.Problem) {
	switch f.Type {
	case gatewayv1.ListenerFilterExternalAuth:
		auth, server, problem := resolveAuthorization(v, owner, f.ExternalAuth)
		auth.BeforeRouting = true
		if problem == nil {
			return auth, server, nil
		}
		return auth, server, []record.Problem{ofListener(*problem)}
	case gatewayv1.ListenerFilterExtensionRef:
		ref := value(f.ExtensionRef)
		return envoy.Authorization{}, record.Key{}, []record.Problem{
			accepted("UnsupportedValue", "an extensionRef is not supported, and nothing is served without it: remove it"),
			unresolved(reasonListenerFilterRef, fmt.Sprintf("%s.%s %s is not a filter that is known here: remove it", ref.Kind, ref.Group, ref.Name)),
		}
	}
	return envoy.Authorization{}, record.Key{}, []record.Problem{accepted("UnsupportedValue", fmt.Sprintf("filter %s is not supported, and nothing is served without it: use ExternalAuth", f.Type))}
}

// ofListener gives what is wrong with a filter the reason that it has on a listener.
func ofListener(p record.Problem) record.Problem {
	switch {
	case p.Condition == string(gatewayv1.ListenerConditionAccepted):
		p.Reason = reasonListenerFilter
	case p.Reason != string(gatewayv1.ListenerReasonRefNotPermitted):
		p.Reason = reasonListenerFilterRef
	}
	p.Message = "ExternalAuth: " + p.Message
	return p
}
