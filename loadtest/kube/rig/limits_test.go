// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestALimitIsRaisedOnceAndNeverLowered(t *testing.T) {
	path := filepath.Join(t.TempDir(), "limit")
	for _, c := range []struct{ before, after, told string }{
		{"128\n", "8192", "from 128 to 8192"},
		{"8192", "8192", ""},
		{"100000\n", "100000", ""},
	} {
		if err := os.WriteFile(path, []byte(c.before), 0o600); err != nil {
			t.Fatal(err)
		}
		told := raiseLimits(path)
		if after, err := os.ReadFile(path); err != nil || strings.TrimSpace(string(after)) != c.after {
			t.Errorf("%q became %q, %v", c.before, after, err)
		}
		if !strings.Contains(told, c.told) || c.told == "" && told != "" {
			t.Errorf("%q: told %q", c.before, told)
		}
	}
}
