package envoy

import (
	"fmt"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/anypb"
)

// Filters that a listener or a route has of its own (GEP-5224, GEP-1494) must not be a part of the connection manager, any change of which drains the listener. So it has slots:
// filters that are off, and run what a RouteConfiguration tells them to. Each filter has a slot for itself, since one slot cannot go on to a second filter when the first has waited.
//
// Those of a listener run before a route is chosen. Envoy chooses one before its first filter begins, and asks that route, its virtual host and the configuration, in this order,
// what each filter is to do. The last two depend on Host alone, which no filter of a listener can change. What such a filter does change makes Envoy forget the route and choose
// again, with the same Host. Two traps are in it. A request that no route matches has no virtual host either, and would pass by the filters: a host that has some needs a last route
// that takes all. And which filters are off is decided once, by the first choice: a request whose second route asks for authorization, and whose first did not, would pass that by. So
// in such a host all that routes can switch on is on, and finds out by the second route whether it has something to do.
const (
	ListenerSlots = 16 // the API's own limit
	RouteSlots    = 4
)

// ListenerSlot names a slot of the filters of a listener; they run first and in their order.
func ListenerSlot(i int) string { return fmt.Sprintf("fleetgate.filters.http.listener.%d", i) }

// RouteSlot names a slot of the filters of a route.
func RouteSlot(i int) string { return fmt.Sprintf("fleetgate.filters.http.route.%d", i) }

// Field numbers; TestFiltersOfHosts holds them against the protos.
const vhostPerFilter, configPerFilter = 15, 16

// switchedOn and switchedOff turn a filter on, as what follows says, and off.
var switchedOn, switchedOff = filterConfig(&routev3.FilterConfig{Config: &anypb.Any{}}), filterConfig(&routev3.FilterConfig{Disabled: true})

func filterConfig(c *routev3.FilterConfig) []byte {
	packed, err := Any(c)
	if err != nil {
		panic(err) // a constant of this package is wrong
	}
	b, err := Marshal(packed)
	if err != nil {
		panic(err)
	}
	return b
}

// ConfigurationFilters has the hosts of a RouteConfiguration run filters of a listener, each an Any as Authorize gives it: further bytes of the message.
func ConfigurationFilters(filters [][]byte) []byte {
	return listenerFilters(configPerFilter, filters, nil)
}

// HostFilters has one host run other filters than the configuration that it is in does: further bytes of the VirtualHost.
func HostFilters(filters, configuration [][]byte) []byte {
	return listenerFilters(vhostPerFilter, filters, configuration)
}

func listenerFilters(field protowire.Number, filters, instead [][]byte) (b []byte) {
	for i, f := range filters {
		b = appendPerFilter(b, field, ListenerSlot(i), f)
	}
	for i := len(filters); i < len(instead); i++ {
		b = appendPerFilter(b, field, ListenerSlot(i), switchedOff)
	}
	if len(filters) == 0 || len(instead) > 0 {
		return b
	}
	for i := range RouteSlots {
		b = appendPerFilter(b, field, RouteSlot(i), switchedOn)
	}
	return appendPerFilter(b, field, SessionFilter, switchedOn)
}

// appendPerFilter writes an entry of typed_per_filter_config.
func appendPerFilter(b []byte, field protowire.Number, name string, config []byte) []byte {
	return appendBytes(b, field, appendBytes(appendBytes(nil, entryKey, name), entryValue, config))
}
