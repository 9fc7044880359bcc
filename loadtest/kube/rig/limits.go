// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

const (
	// inotifyLimit is how many inotify instances one user may have. All pods of all clusters that run as the same user share them, and an Envoy takes four.
	inotifyLimit = "/proc/sys/fs/inotify/max_user_instances"
	// inotifyWanted is enough for a thousand Envoys.
	inotifyWanted = 8192
)

// raiseLimits raises the one limit of the machine that clusters run into: with the kernel's 128 the 33rd Envoy of a user aborts at its start. This is the only thing of the machine
// that a rig changes, and it stays changed; it is what a node of a usual cluster is set to as well. It returns what is to be told.
func raiseLimits(path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	now, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil || now >= inotifyWanted {
		return ""
	}
	if err := os.WriteFile(path, []byte(strconv.Itoa(inotifyWanted)), 0); err != nil {
		return fmt.Sprintf("this machine lets each user have %d inotify instances, enough for %d Envoys (as root: sysctl fs.inotify.max_user_instances=%d)", now, now/4, inotifyWanted)
	}
	return fmt.Sprintf("raised the machine's fs.inotify.max_user_instances from %d to %d: each Envoy takes four", now, inotifyWanted)
}
