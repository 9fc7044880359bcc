package fleet

import (
	"math/rand/v2"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/api/validation"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
)

func TestNames(t *testing.T) {
	for _, c := range []struct{ failure, gateway, class, want string }{
		{"plain name not kept", "nginx-gateway", "envoy", "nginx-gateway-envoy"},
		{"dashed class could be read in two ways", "a", "b-c", "a-b-c-b88f83c840abe581"},
		{"dots are in no DNS label", "a.b", "c", "a-b-c-"},
		{"Services do not begin with a digit", "1st", "c", "g-1st-c-"},
		{"too long", strings.Repeat("x", 253), "c", strings.Repeat("x", 46) + "-"},
	} {
		if got := Name(c.gateway, c.class); !strings.HasPrefix(got, c.want) {
			t.Errorf("%s: Name(%q, %q) = %q, want %q", c.failure, c.gateway, c.class, got, c.want)
		}
	}
}

// TestNamesAreInjectiveAndValid draws names that are as close to each other as names can be.
func TestNamesAreInjectiveAndValid(t *testing.T) {
	seen := map[string][2]string{}
	r := rand.New(rand.NewPCG(1, 2))
	draw := func(longest int) string {
		b := make([]byte, 1+r.IntN(longest))
		for i := range b {
			b[i] = "ab-.0"[r.IntN(5)]
		}
		return strings.Trim(strings.NewReplacer("..", "a.", ".-", "a-", "-.", "-b").Replace(string(b)), "-.")
	}
	pairs := [][2]string{{"a", "b-c"}, {"a-b", "c"}, {strings.Repeat("a", 253), "c"}, {strings.Repeat("a", 252), "c"}, {strings.Repeat("a", 253), "d"}}
	for range 20_000 {
		pairs = append(pairs, [2]string{draw(4), draw(4)})
	}
	for range 2_000 {
		long := draw(253)
		pairs = append(pairs, [2]string{long, draw(253)})
		if other := Name(long, "x-y"); hashed.MatchString(other) { // the same name as a plain one, were that allowed
			pairs = append(pairs, [2]string{long, "x-y"}, [2]string{other[:len(other)-17], other[len(other)-16:]})
		}
	}
	for _, p := range pairs {
		if p[0] == "" || p[1] == "" {
			continue
		}
		name := Name(p[0], p[1])
		if other, ok := seen[name]; ok && other != p {
			t.Fatalf("%q and %q are both called %s", other, p, name)
		}
		seen[name] = p
		if problems := validation.NameIsDNS1035Label(name, false); len(problems) > 0 {
			t.Fatalf("%q: Name %q: %v", p, name, problems)
		}
		if problems := utilvalidation.IsValidLabelValue(labelValue(p[0])); len(problems) > 0 {
			t.Fatalf("label %q: %v", labelValue(p[0]), problems)
		}
	}
}
