package translate

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/anypb"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/fleetgate/fleetgate/translate/envoy"
	"github.com/fleetgate/fleetgate/translate/record"
)

// Session persistence (GEP-1619) begins when a backend has been chosen by weight, and overrides neither that nor the match. So each backend has sessions of its
// own: one that a client left for a while is found again when the weights send it back.

// pin is how the requests of one share stay with an endpoint; over TLS the cookie says that it belongs there.
type pin struct{ clear, secure *anypb.Any }

// at is what the Envoy route of a listener with a scheme says.
func (p *pin) at(scheme string) *anypb.Any {
	if scheme == "https" {
		return p.secure
	}
	return p.clear
}

func newPin(s envoy.Session) (*pin, error) {
	clear, err := envoy.StatefulSession(s)
	if err != nil {
		return nil, err
	}
	s.Secure = true
	secure, err := envoy.StatefulSession(s)
	return &pin{clear, secure}, err
}

// pinShares pins the shares of a rule. The first backend has the name that the rule gives: it keeps its sessions when a second one comes beside it. A
// backend that is named twice, for filters of its own, has the same sessions both times.
func (r *ruleCompiler) pinShares(shares []share) error {
	if r.rule.SessionPersistence == nil {
		return pinToBackends(shares)
	}
	first, err := readSession(r.rule.SessionPersistence, "fleetgate-"+record.Hash([]byte(r.identity())))
	if err != nil {
		return fmt.Errorf("sessionPersistence: %w", err)
	}
	for i := range shares {
		s := first
		if shares[i].cluster != shares[0].cluster && s.Header == "" {
			s.Cookie += "-" + record.Hash([]byte(shares[i].cluster))
		}
		if shares[i].pin, err = newPin(s); err != nil {
			return fmt.Errorf("sessionPersistence: %w", err)
		}
	}
	return nil
}

// pinToBackends pins the shares whose XBackends ask for it, where the rule does not: what is nearer to the request comes first (GEP-1619). Of two that give their cookies one name the
// second has another, or each would end the other's sessions.
func pinToBackends(shares []share) error {
	taken := map[string]string{} // by which cluster
	for i, one := range shares {
		if one.backend == nil || one.backend.spec.SessionPersistence == nil {
			continue
		}
		s, err := one.backend.session()
		if err != nil {
			continue // the XBackend says so, and answers 500
		}
		if by := taken[s.Cookie]; s.Header == "" && by != "" && by != one.cluster {
			s.Cookie += "-" + record.Hash([]byte(one.cluster))
		}
		taken[s.Cookie] = one.cluster
		if shares[i].pin, err = newPin(s); err != nil {
			return fmt.Errorf("sessionPersistence of XBackend %s: %w", one.backend.object.Name, err)
		}
	}
	return nil
}

// identity is what a rule is called, whatever stands before it if it has a name of its own.
func (r *ruleCompiler) identity() string {
	o, rule := r.spec.object, strconv.Itoa(r.index)
	if r.rule.Name != nil {
		rule = "/" + string(*r.rule.Name)
	}
	return record.Join(o.Kind, o.Namespace, o.Name, rule)
}

// readSession reads session persistence; unnamed is the name of a cookie to which none is given.
func readSession(in *gatewayv1.SessionPersistence, unnamed string) (envoy.Session, error) {
	timeout, err := duration("absoluteTimeout", in.AbsoluteTimeout)
	if err != nil {
		return envoy.Session{}, err
	}
	switch kind := value(in.Type); kind {
	case gatewayv1.HeaderBasedSessionPersistence:
		return headerSession(in.Header, in.AbsoluteTimeout != nil)
	case gatewayv1.CookieBasedSessionPersistence, "":
		return cookieSession(in.Cookie, in.AbsoluteTimeout != nil, timeout, unnamed)
	default:
		return envoy.Session{}, fmt.Errorf("type %s is not supported: use Cookie or Header", kind)
	}
}

func headerSession(in *gatewayv1.HeaderConfig, limited bool) (envoy.Session, error) {
	name := strings.ToLower(string(value(in).Name))
	switch {
	case limited:
		return envoy.Session{}, fmt.Errorf("absoluteTimeout is not supported with a header, which lives as long as the client sends it: remove it, or use a cookie with lifetimeType Permanent")
	case !token.MatchString(name) || framing(name):
		return envoy.Session{}, fmt.Errorf("header %q cannot hold a session: name another", name)
	}
	return envoy.Session{Header: name}, nil
}

func cookieSession(in *gatewayv1.CookieConfig, limited bool, timeout time.Duration, unnamed string) (envoy.Session, error) {
	cookie := value(in)
	out := envoy.Session{Cookie: unnamed, Path: "/"}
	if cookie.Name != nil {
		out.Cookie = string(*cookie.Name)
	}
	if !token.MatchString(out.Cookie) {
		return out, fmt.Errorf("cookie.name %q is not valid: use letters, digits and dashes", out.Cookie)
	}
	if p := value(cookie.Path); p != "" {
		out.Path = p
	}
	if !strings.HasPrefix(out.Path, "/") || strings.ContainsFunc(out.Path, func(c rune) bool { return c == ';' || c < ' ' || c > '~' }) {
		return out, fmt.Errorf("cookie.path %q is not valid: begin it with a slash, and leave out semicolons and what is not printable ASCII", out.Path)
	}
	switch life := value(cookie.LifetimeType); {
	case life == gatewayv1.PermanentCookieLifetimeType && timeout <= 0:
		return out, fmt.Errorf("a cookie of lifetimeType Permanent needs an absoluteTimeout above 0: give it")
	case life == gatewayv1.PermanentCookieLifetimeType:
		out.MaxAge = (timeout + time.Second - 1).Truncate(time.Second)
	case life != "" && life != gatewayv1.SessionCookieLifetimeType:
		return out, fmt.Errorf("lifetimeType %s is not supported: use Session or Permanent", life)
	case limited:
		return out, fmt.Errorf("absoluteTimeout is not supported for a cookie of lifetimeType Session: remove it, or set lifetimeType: Permanent")
	}
	return out, nil
}

// token is what the name of a header or a cookie is (RFC 9110 5.6.2, RFC 6265 4.1.1).
var token = regexp.MustCompile("^[A-Za-z0-9!#$%&'*+.^_`|~-]+$")

// framing tells whether a header says where a message begins and ends, or whom it is for: nobody but Envoy may set it.
func framing(name string) bool {
	switch strings.ToLower(name) {
	case "host", "connection", "content-length", "transfer-encoding", "keep-alive", "proxy-connection", "te", "trailer", "upgrade":
		return true
	}
	return false
}
