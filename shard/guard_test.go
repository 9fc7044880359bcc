package shard

import "testing"

func TestGuard(t *testing.T) {
	g := Guard{Share: 0.5, Min: 10}
	for name, c := range map[string]struct {
		n    census
		held bool
	}{
		"an emptied cluster with one route":          {census{1, 1, 1, 1}, true},
		"classes gone, routes still there":           {census{2, 2, 100, 0}, true},
		"one class of two gone":                      {census{2, 1, 100, 3}, false},
		"two routes of three deleted on a laptop":    {census{1, 0, 3, 2}, false},
		"one small row lost all, the others nothing": {census{1, 0, 100, 8}, false},
		"most routes gone everywhere":                {census{1, 0, 100, 51}, true},
		"half of the routes":                         {census{1, 0, 100, 50}, false},
		"a store without classes":                    {census{0, 0, 3, 3}, false},
	} {
		if why := g.holds(c.n); (why != "") != c.held {
			t.Errorf("%s: held %v: %q", name, !c.held, why)
		}
	}
	if why := (Guard{}).holds(census{1, 1, 100, 100}); why != "" {
		t.Errorf("no guard holds: %s", why)
	}
}
