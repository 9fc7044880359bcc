// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"

	"github.com/fleetgate/fleetgate/loadtest/kube/container"
)

// capabilities by name, without CAP_.
var capabilities = map[string]int{
	"AUDIT_CONTROL": unix.CAP_AUDIT_CONTROL, "AUDIT_READ": unix.CAP_AUDIT_READ, "AUDIT_WRITE": unix.CAP_AUDIT_WRITE, "BLOCK_SUSPEND": unix.CAP_BLOCK_SUSPEND,
	"BPF": unix.CAP_BPF, "CHECKPOINT_RESTORE": unix.CAP_CHECKPOINT_RESTORE, "CHOWN": unix.CAP_CHOWN, "DAC_OVERRIDE": unix.CAP_DAC_OVERRIDE,
	"DAC_READ_SEARCH": unix.CAP_DAC_READ_SEARCH, "FOWNER": unix.CAP_FOWNER, "FSETID": unix.CAP_FSETID, "IPC_LOCK": unix.CAP_IPC_LOCK, "IPC_OWNER": unix.CAP_IPC_OWNER,
	"KILL": unix.CAP_KILL, "LEASE": unix.CAP_LEASE, "LINUX_IMMUTABLE": unix.CAP_LINUX_IMMUTABLE, "MAC_ADMIN": unix.CAP_MAC_ADMIN, "MAC_OVERRIDE": unix.CAP_MAC_OVERRIDE,
	"MKNOD": unix.CAP_MKNOD, "NET_ADMIN": unix.CAP_NET_ADMIN, "NET_BIND_SERVICE": unix.CAP_NET_BIND_SERVICE, "NET_BROADCAST": unix.CAP_NET_BROADCAST, "NET_RAW": unix.CAP_NET_RAW,
	"PERFMON": unix.CAP_PERFMON, "SETFCAP": unix.CAP_SETFCAP, "SETGID": unix.CAP_SETGID, "SETPCAP": unix.CAP_SETPCAP, "SETUID": unix.CAP_SETUID, "SYS_ADMIN": unix.CAP_SYS_ADMIN,
	"SYS_BOOT": unix.CAP_SYS_BOOT, "SYS_CHROOT": unix.CAP_SYS_CHROOT, "SYS_MODULE": unix.CAP_SYS_MODULE, "SYS_NICE": unix.CAP_SYS_NICE, "SYS_PACCT": unix.CAP_SYS_PACCT,
	"SYS_PTRACE": unix.CAP_SYS_PTRACE, "SYS_RAWIO": unix.CAP_SYS_RAWIO, "SYS_RESOURCE": unix.CAP_SYS_RESOURCE, "SYS_TIME": unix.CAP_SYS_TIME,
	"SYS_TTY_CONFIG": unix.CAP_SYS_TTY_CONFIG, "SYSLOG": unix.CAP_SYSLOG, "WAKE_ALARM": unix.CAP_WAKE_ALARM,
}

// usual are the capabilities that container runtimes leave a container.
var usual = []string{
	"AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE", "NET_RAW", "SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT",
}

// secured is the part of a container's spec that its and its pod's security contexts decide.
func secured(pod *v1.Pod, c *v1.Container, image Image) (container.Spec, error) {
	p, s := pod.Spec.SecurityContext, c.SecurityContext
	if p == nil {
		p = &v1.PodSecurityContext{}
	}
	if s == nil {
		s = &v1.SecurityContext{}
	}
	var spec container.Spec
	spec.UID = pick(image.User, p.RunAsUser, s.RunAsUser)
	spec.GID = pick(image.Group, p.RunAsGroup, s.RunAsGroup)
	if nonRoot := firstOf(s.RunAsNonRoot, p.RunAsNonRoot); nonRoot && spec.UID == 0 {
		return spec, errors.New("container has runAsNonRoot and image will run as root: set runAsUser")
	}
	for _, g := range p.SupplementalGroups {
		spec.Groups = append(spec.Groups, uint32(g))
	}
	if p.FSGroup != nil {
		spec.Groups = append(spec.Groups, uint32(*p.FSGroup))
	}
	spec.ReadOnlyRoot = firstOf(s.ReadOnlyRootFilesystem)
	spec.Sealed = s.AllowPrivilegeEscalation != nil && !*s.AllowPrivilegeEscalation
	var err error
	spec.Capabilities, err = allowed(s)
	return spec, err
}

// pick is the last of the numbers that is set.
func pick(image uint32, settings ...*int64) uint32 {
	for _, n := range settings {
		if n != nil {
			image = uint32(*n)
		}
	}
	return image
}

func firstOf(settings ...*bool) bool {
	for _, b := range settings {
		if b != nil {
			return *b
		}
	}
	return false
}

// allowed are the capabilities of a container: the usual ones, less what is dropped, plus what is added; all for a privileged one.
func allowed(s *v1.SecurityContext) ([]int, error) {
	set := map[int]bool{}
	all := firstOf(s.Privileged)
	if all {
		addAll(set)
	}
	for _, name := range usual {
		set[capabilities[name]] = true
	}
	if s.Capabilities != nil && !all {
		for _, name := range s.Capabilities.Drop {
			if err := change(set, string(name), false); err != nil {
				return nil, err
			}
		}
		for _, name := range s.Capabilities.Add {
			if err := change(set, string(name), true); err != nil {
				return nil, err
			}
		}
	}
	var out []int
	for c, in := range set {
		if in {
			out = append(out, c)
		}
	}
	return out, nil
}

func addAll(set map[int]bool) {
	for _, c := range capabilities {
		set[c] = true
	}
}

func change(set map[int]bool, name string, in bool) error {
	name = strings.TrimPrefix(strings.ToUpper(name), "CAP_")
	if name == "ALL" {
		for _, c := range capabilities {
			set[c] = in
		}
		return nil
	}
	c, ok := capabilities[name]
	if !ok {
		return fmt.Errorf("unknown capability %q", name)
	}
	set[c] = in
	return nil
}
