package assemble

import "google.golang.org/protobuf/encoding/protowire"

// Field numbers of envoy.config.route.v3.Route and DirectResponseAction; TestDegraded holds them against the protos.
const (
	routeMatch          = 1
	routeDirectResponse = 7
	routeName           = 14
	directStatus        = 1
)

// answer500 gives a Route with the match and the name of the given one that answers 500. Fields are cut out as bytes: nothing is parsed but their
// borders. It says false where the bytes are no message.
func answer500(route []byte) ([]byte, bool) {
	var out []byte
	for rest := route; len(rest) > 0; {
		number, _, n := protowire.ConsumeField(rest)
		if n < 0 {
			return nil, false
		}
		if number == routeMatch || number == routeName {
			out = append(out, rest[:n]...)
		}
		rest = rest[n:]
	}
	status := protowire.AppendVarint(protowire.AppendTag(nil, directStatus, protowire.VarintType), 500)
	out = protowire.AppendTag(out, routeDirectResponse, protowire.BytesType)
	return protowire.AppendBytes(out, status), true
}
