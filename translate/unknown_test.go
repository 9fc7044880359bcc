package translate

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/fleetgate/fleetgate/translate/record"
)

// after gives a compiler that starts with what a compiler of all of lab has committed, and that sees only some of its objects.
func after(t *testing.T, committed map[record.Key]Put, objects string, unknown ...Event) *Compiler {
	t.Helper()
	cfg := testConfig()
	cfg.Last = func(k record.Key) []byte { return committed[k].Payload }
	c := New(cfg)
	c.Apply(append(parseObjects(t, objects), unknown...))
	c.Referenced(slices.Collect(maps.Keys(committed))) // everything was referred to, for all we know
	return c
}

// swept is what the sweep would leave of the committed records.
func swept(c *Compiler, committed map[record.Key]Put) map[record.Key]Put {
	left := c.Records()
	for k, p := range committed {
		if _, ok := left[k]; !ok && c.Unknown(k) {
			left[k] = p
		}
	}
	return left
}

func differences(got, want map[record.Key]Put) string {
	var b []string
	for k, p := range want {
		if g, ok := got[k]; !ok {
			b = append(b, "-"+name(k))
		} else if !record.Equal(g.Payload, p.Payload) || !slices.Equal(g.Refs, p.Refs) {
			b = append(b, "~"+name(k))
		}
	}
	for k := range got {
		if _, ok := want[k]; !ok {
			b = append(b, "+"+name(k))
		}
	}
	slices.Sort(b)
	return strings.Join(b, ", ")
}

// without leaves one object out of lab.
func without(i int) string {
	return strings.Join(slices.Delete(strings.Split(lab, "\n---\n"), i, i+1), "\n---\n")
}

// TestUnknownIsNotAbsent: whichever object cannot be seen after a restart, nothing that was compiled changes; once it is known to be absent, it is.
func TestUnknownIsNotAbsent(t *testing.T) {
	all := New(testConfig())
	all.Apply(parseObjects(t, lab))
	committed := all.Records()
	for i := range strings.Split(lab, "\n---\n") {
		hidden := parseObjects(t, slice(lab, i))[0]
		named := Event{Kind: hidden.Kind, Namespace: hidden.Namespace, Name: hidden.Name, Unknown: true}
		for what, unknown := range map[string]Event{"named": named, "everything": {Unknown: true}} {
			t.Run(fmt.Sprintf("%s %s, %s", hidden.Kind, hidden.Name, what), func(t *testing.T) {
				c := after(t, committed, without(i), unknown)
				if d := differences(swept(c, committed), committed); d != "" {
					t.Errorf("the unknown changed %s", d)
				}
				unknown.Unknown = false
				if out := c.Apply([]Event{unknown}); !out.Doubted {
					t.Error("the sweep is not told to look again")
				}
				c.Referenced(nil) // the store has no referrers left either
				dumb := after(t, nil, without(i))
				if d := differences(swept(c, committed), dumb.Records()); d != "" {
					t.Errorf("once it is known to be absent, this differs from a compiler that never heard of it: %s", d)
				}
			})
		}
	}
}

// TestAPersonsChangeIsCompiledWithWhatIsKnown: what is unknown freezes no route that somebody edits.
func TestAPersonsChangeIsCompiledWithWhatIsKnown(t *testing.T) {
	all := New(testConfig())
	all.Apply(parseObjects(t, lab))
	committed := all.Records()
	c := after(t, committed, without(2), Event{Unknown: true})
	out := c.Apply(parseObjects(t, strings.Replace(slice(lab, 4), "generation: 1", "generation: 2", 1)))
	k := record.Key{Cluster: "c1", Namespace: "shop", Kind: record.KindRoute, Name: "HTTPRoute/r"}
	r := routeOf(t, c.Records()[k])
	if out.Compiled != 1 || r.Object.Generation != 2 || len(r.Problems) != 1 || r.Problems[0].Reason != "BackendNotFound" {
		t.Errorf("%d compiled: %+v", out.Compiled, r)
	}
}

const tlsToBackend = `kind: BackendTLSPolicy
metadata: {namespace: shop, name: p, generation: 1}
spec: {targetRefs: [{group: "", kind: Service, name: web}], validation: {hostname: web.example, caCertificateRefs: [{group: "", kind: ConfigMap, name: ca}]}}`

// TestADeniedAuthorityIsToldOnThePolicy: what RBAC forbids to read is not called absent; a policy that was in order stays as it was committed, until somebody edits it.
func TestADeniedAuthorityIsToldOnThePolicy(t *testing.T) {
	k := record.Key{Cluster: "c1", Namespace: "shop", Kind: record.KindPolicy, Name: "BackendTLSPolicy/p"}
	policy := func(c *Compiler) (p record.Policy) {
		put, _ := c.Record(k)
		if err := record.Unmarshal(put.Payload, &p); err != nil {
			t.Fatal(err)
		}
		return p
	}
	told := func(p record.Policy) bool {
		return len(p.Problems) > 0 && strings.Contains(p.Problems[0].Message, "ConfigMap ca may not be read: RBAC forbids")
	}
	denied := Event{Kind: "ConfigMap", Namespace: "shop", Name: "ca", Unknown: true, Denied: true}
	cfg := testConfig()
	cfg.Asked = true
	c := New(cfg)
	c.Apply(parseObjects(t, tlsToBackend))
	if out := c.Apply([]Event{denied}); !told(policy(c)) || out.Doubted {
		t.Errorf("the policy says %+v (doubted %t)", policy(c).Problems, out.Doubted)
	}
	good, _ := record.Marshal(record.Policy{Object: policy(c).Object, Services: []string{"web"}})
	cfg.Last = func(record.Key) []byte { return good }
	c = New(cfg)
	for i, events := range [][]Event{parseObjects(t, tlsToBackend), {denied}} { // nobody has answered; nobody may
		if c.Apply(events); len(policy(c).Problems) > 0 {
			t.Errorf("step %d: the committed policy became %+v", i, policy(c))
		}
	}
	if c.Apply(parseObjects(t, strings.Replace(tlsToBackend, "generation: 1", "generation: 2", 1))); !told(policy(c)) || policy(c).Object.Generation != 2 {
		t.Errorf("the edited policy is %+v", policy(c))
	}
}
