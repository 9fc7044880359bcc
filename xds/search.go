package xds

import (
	"maps"
	"slices"
)

// search finds the parts that make a proxy reject a resource, by trial (D7): the proxy is offered the resource with some of the changed parts replaced by what a pin would make
// of them. Each trial that it accepts lets the innocent parts in it through at once. Of n parts, d culprits are found in about d * (log2 n + 1) trials: what holds a culprit is
// halved until it is alone, then the rest is tried together. A search is pure: next says what to offer, answer takes what came of it.
type search struct {
	suspects map[string]string // part -> the form of it that was rejected with the others
	lesser   map[string]string // part -> the form that is refused where the part is not offered; its next lesser form is served then
	hint     []string          // the parts that another proxy rejected: to be confirmed first

	based  bool     // a trial was accepted
	bad    []string // found to be culprits
	guilty []string // at least one of these is a culprit
	open   []string // nothing is known of these
	good   []string // were accepted
	offer  []string // on trial, beside those that are good
}

// newSearch begins with a rejection of all suspects together.
func newSearch(suspects map[string]string, hint []string) *search {
	s := &search{suspects: suspects, lesser: maps.Clone(suspects), guilty: slices.Sorted(maps.Keys(suspects))}
	if len(hint) < len(s.guilty) {
		s.hint = hint
	}
	return s
}

// next gives the forms to refuse in the next trial; ok is false when all is known.
func (s *search) next() (refuse map[string]string, ok bool) {
	if s.based && len(s.guilty) == 1 {
		s.bad, s.guilty = append(s.bad, s.guilty...), nil
	}
	switch {
	case len(s.hint) > 0:
		s.offer = without(s.guilty, s.hint)
	case !s.based:
		s.offer = nil
	case len(s.guilty) > 1:
		s.offer = s.guilty[:len(s.guilty)/2]
	case len(s.open) > 0:
		s.offer = s.open
	default:
		return nil, false
	}
	refuse = maps.Clone(s.lesser)
	for _, p := range slices.Concat(s.good, s.offer) {
		delete(refuse, p)
	}
	return refuse, true
}

// answer takes the outcome of what next asked for; parts are those of the resource that was tried. It gives false when there is nothing left to try: without any suspect the
// resource is rejected still.
func (s *search) answer(accepted bool, parts map[string]string) bool {
	hinted := len(s.hint) > 0
	s.hint = nil
	switch {
	case accepted:
		s.based = true
		s.good = s.proven(parts)
		s.guilty, s.open = without(s.guilty, s.good), without(s.open, s.good)
	case hinted:
	case !s.based:
		return s.retreat(parts)
	case len(s.guilty) > 0:
		s.open = append(s.open, without(s.guilty, s.offer)...)
		s.guilty = s.offer
	default:
		s.guilty, s.open = s.offer, nil
	}
	return true
}

// proven lists the suspects that are in an accepted resource as they were in the rejected one.
func (s *search) proven(parts map[string]string) (out []string) {
	for p, hash := range s.suspects {
		if parts[p] == hash {
			out = append(out, p)
		}
	}
	slices.Sort(out)
	return out
}

// retreat refuses the lesser forms too of which a rejected resource without any suspect was made; it tells whether there are any.
func (s *search) retreat(parts map[string]string) bool {
	again := false
	for p, hash := range s.lesser {
		if now, there := parts[p]; there && now != hash {
			s.lesser[p], again = now, true
		}
	}
	return again
}

// culprits gives what the search has found; where it has found nothing, the suspects that it could not do without, or all of them.
func (s *search) culprits(last map[string]string) map[string]string {
	out := map[string]string{}
	for _, p := range s.bad {
		out[p] = s.suspects[p]
	}
	if len(out) > 0 || s.based {
		return out
	}
	for _, p := range s.proven(last) {
		out[p] = s.suspects[p]
	}
	if len(out) == 0 {
		return s.suspects
	}
	return out
}

func without(all, some []string) []string {
	return slices.DeleteFunc(slices.Clone(all), func(p string) bool { return slices.Contains(some, p) })
}
