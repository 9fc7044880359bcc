package envoy

import (
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	statefulv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/stateful_session/v3"
	cookiev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/http/stateful_session/cookie/v3"
	headerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/http/stateful_session/header/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/type/http/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
)

// SessionFilter is the name of the filter that keeps a client with the endpoint that it had before, to which a route or a weighted cluster says how.
const SessionFilter = "envoy.filters.http.stateful_session"

// Session is how a client shows which endpoint it had: by a header or by a cookie, whose value is the endpoint's address in base64. One whose endpoint is
// not there any more goes to another, and is told that.
type Session struct {
	Header string // "" = a cookie

	Cookie, Path string
	MaxAge       time.Duration // whole seconds; 0 = until the client ends its session. Envoy holds clients to it: the time is in the cookie too
	Secure       bool          // the client sends the cookie only over TLS
}

// StatefulSession is what a route or a weighted cluster says to SessionFilter. Envoy finds the kind of state by the extension's name, not by the type.
func StatefulSession(s Session) (*anypb.Any, error) {
	name, state := "envoy.http.stateful_session.header", proto.Message(&headerv3.HeaderBasedSessionState{Name: s.Header})
	if s.Header == "" {
		name, state = "envoy.http.stateful_session.cookie", &cookiev3.CookieBasedSessionState{Cookie: sessionCookie(s)}
	}
	packed, err := Any(state)
	if err != nil {
		return nil, err
	}
	return Any(&statefulv3.StatefulSessionPerRoute{Override: &statefulv3.StatefulSessionPerRoute_StatefulSession{
		StatefulSession: &statefulv3.StatefulSession{SessionState: &corev3.TypedExtensionConfig{Name: name, TypedConfig: packed}},
	}})
}

// sessionCookie is safe by default, as GEP-1619 asks; Envoy adds HttpOnly itself.
func sessionCookie(s Session) *httpv3.Cookie {
	c := &httpv3.Cookie{Name: s.Cookie, Path: s.Path, Ttl: durationpb.New(s.MaxAge), Attributes: []*httpv3.CookieAttribute{{Name: "SameSite", Value: "Strict"}}}
	if s.Secure {
		c.Attributes = append(c.Attributes, &httpv3.CookieAttribute{Name: "Secure"})
	}
	return c
}
