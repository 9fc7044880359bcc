// SPDX-License-Identifier: Apache-2.0

package container

import "testing"

func TestOneUser(t *testing.T) {
	for mapped, want := range map[string]bool{
		"         0       1001          1\n": true,
		"         0          0 4294967295\n": false,
		"0 1001 1\n1 100000 65536\n":         false,
		"         5       1001          1\n": false,
		"":                                   false,
	} {
		if got := oneUser(mapped); got != want {
			t.Errorf("%q: %t", mapped, got)
		}
	}
}
