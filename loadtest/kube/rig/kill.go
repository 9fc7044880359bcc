// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// KillContainers ends all containers of the pods of a pattern (NAMESPACE/NAME as filepath.Match has it) by SIGKILL at once, and returns when their node has started each again.
func (r *Rig) KillContainers(ctx context.Context, cluster, pods string) error {
	c, err := r.Find(cluster)
	if err != nil {
		return err
	}
	files, err := filepath.Glob(filepath.Join(c.Dir, "kubelet", "pids", pods, "*"))
	if err != nil || len(files) == 0 {
		return fmt.Errorf("kill %s: no container is noted: %v", pods, err)
	}
	var kill, restarted strings.Builder
	for _, f := range files {
		pid, err := os.ReadFile(f)
		if err != nil {
			return fmt.Errorf("kill %s: %w", pods, err)
		}
		id := strings.TrimSpace(string(pid))
		fmt.Fprintf(&kill, "kill -9 %s; ", id)
		fmt.Fprintf(&restarted, `until now=$(cat '%s') && test -n "$now" && test "$now" != %s; do sleep 0.02; done; `, f, id)
	}
	// The process ids are those of the rig's own namespace.
	code, err := r.Run(ctx, Command{Args: []string{"sh", "-c", kill.String() + restarted.String()}, Stderr: os.Stderr})
	if err == nil && code != 0 {
		err = fmt.Errorf("kill %s: exit code %d", pods, code)
	}
	return err
}
