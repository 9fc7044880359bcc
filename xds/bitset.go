package xds

import "math/bits"

// bitset is a set of interned ids; the zero value is empty. Methods that add may return a longer one.
type bitset []uint64

func (b bitset) has(id uint32) bool {
	w := int(id / 64)
	return w < len(b) && b[w]&(1<<(id%64)) != 0
}

func (b *bitset) add(id uint32) {
	w := int(id / 64)
	for w >= len(*b) {
		*b = append(*b, 0)
	}
	(*b)[w] |= 1 << (id % 64)
}

func (b bitset) remove(id uint32) {
	if w := int(id / 64); w < len(b) {
		b[w] &^= 1 << (id % 64)
	}
}

func (b bitset) empty() bool {
	for _, w := range b {
		if w != 0 {
			return false
		}
	}
	return true
}

// each calls f for every id, in rising order; f may remove the id that it is called with.
func (b bitset) each(f func(id uint32)) {
	for i, w := range b {
		for ; w != 0; w &= w - 1 {
			f(uint32(i*64 + bits.TrailingZeros64(w)))
		}
	}
}

// keep drops all ids that are not in o.
func (b bitset) keep(o bitset) {
	for i := range b {
		if i < len(o) {
			b[i] &= o[i]
		} else {
			b[i] = 0
		}
	}
}

func (b bitset) count() (n int) {
	for _, w := range b {
		n += bits.OnesCount64(w)
	}
	return n
}
