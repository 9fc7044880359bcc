// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fleetgate/fleetgate/loadtest/kube/container"
)

// Why a container waits, in the words of Kubernetes.
const (
	reasonImage  = "ErrImagePull"
	reasonConfig = "CreateContainerConfigError"
	reasonRun    = "RunContainerError"
	reasonCrash  = "CrashLoopBackOff"
)

// start starts a container, or notes why it cannot.
func (w *worker) start(c *v1.Container) {
	image, err := w.k.Images.find(c.Image)
	if err != nil {
		w.unstarted(c, reasonImage, "Failed", err)
		return
	}
	spec, err := w.spec(c, image)
	if err != nil {
		w.unstarted(c, reasonConfig, "Failed", err)
		return
	}
	r, err := w.launch(c, spec)
	if err != nil {
		w.unstarted(c, reasonRun, "Failed", err)
		return
	}
	w.containers[c.Name] = r
	s := w.states[c.Name]
	if s.ended != nil {
		s.restarts++
	}
	s.running, s.started, s.ready, s.startedAt = true, false, false, time.Now()
	s.reason, s.message = "", ""
	s.id = fmt.Sprintf("process://%d.%d", r.process.PID(), s.restarts)
	w.k.event(w.pod, v1.EventTypeNormal, "Started", "Started container "+c.Name)
	w.notePID(c.Name, r.process.PID())
	ctx, cancel := context.WithCancel(w.ctx)
	r.cancel = cancel
	t := w.target(c, r)
	w.k.jobs.Go(func() { w.follow(ctx, t, r) })
	w.k.jobs.Go(func() {
		exit := r.process.Exit()
		cancel()
		r.log.close()
		w.post(func() { w.ended(c, r, exit) })
	})
}

// notePID writes down the process number, for whoever wants to kill a container with the API server down: Dir/pids/namespace/pod/container.
func (w *worker) notePID(name string, pid int) {
	dir := w.k.pids(w.pod)
	err := os.MkdirAll(dir, 0o755)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, name), []byte(strconv.Itoa(pid)+"\n"), 0o644)
	}
	if err != nil {
		w.k.Log.Error("cannot write down the process number of a container", "namespace", w.pod.Namespace, "pod", w.pod.Name, "error", err)
	}
}

// forgetPIDs takes back what notePID wrote, and nothing that a later pod of the same name has written.
func (w *worker) forgetPIDs() {
	dir := w.k.pids(w.pod)
	for name, r := range w.containers {
		path := filepath.Join(dir, name)
		if data, err := os.ReadFile(path); err == nil && string(data) == strconv.Itoa(r.process.PID())+"\n" {
			_ = os.Remove(path) // what stays names a process that is gone
		}
	}
	_ = os.Remove(dir) // fails while there are files of others
}

func (k *kubelet) pids(pod *v1.Pod) string {
	return filepath.Join(k.Dir, "pids", pod.Namespace, pod.Name)
}

// launch starts the process with its log, and keeps the log of the run before.
func (w *worker) launch(c *v1.Container, spec container.Spec) (*run, error) {
	dir := filepath.Join(w.k.place(w.pod.UID), "logs", c.Name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("making a directory for logs: %w", err)
	}
	log, err := newLog(filepath.Join(dir, strconv.Itoa(w.attempts[c.Name])))
	if err != nil {
		return nil, err
	}
	w.attempts[c.Name]++
	process, err := startLogged(spec, w.network.File(), log)
	if err != nil {
		log.close()
		log.remove()
		return nil, err
	}
	r := &run{process: process, log: log}
	if before := w.containers[c.Name]; before != nil {
		r.kept = before.log
		if before.kept != nil {
			before.kept.remove()
		}
	}
	return r, nil
}

// startLogged starts a process that writes to a log, which is left without writers where that fails.
func startLogged(spec container.Spec, network *os.File, log *containerLog) (*container.Running, error) {
	out, err := log.pipe("stdout")
	if err != nil {
		return nil, err
	}
	defer func() { _ = out.Close() }()
	errs, err := log.pipe("stderr")
	if err != nil {
		return nil, err
	}
	defer func() { _ = errs.Close() }()
	return container.Start(spec, network, container.Stdio{Out: out, Err: errs})
}

// unstarted notes a failed attempt.
func (w *worker) unstarted(c *v1.Container, reason, event string, err error) {
	s := w.states[c.Name]
	s.failures++
	s.reason, s.message = reason, err.Error()
	s.notBefore = time.Now().Add(max(firstBackOff, backOff(s.failures)))
	w.k.event(w.pod, v1.EventTypeWarning, event, fmt.Sprintf("Error: %s: container %s: %v", reason, c.Name, err))
}

// ended notes the end of a container.
func (w *worker) ended(c *v1.Container, r *run, exit container.Exit) {
	s, now := w.states[c.Name], time.Now()
	reason := "Completed"
	if exit.Code != 0 {
		reason = "Error"
	}
	s.running, s.started, s.ready = false, false, false
	s.before, s.ended = s.ended, &v1.ContainerStateTerminated{
		ExitCode: int32(exit.Code), Signal: int32(exit.Signal), Reason: reason, Message: w.lastWords(c, r, exit),
		StartedAt: metav1.NewTime(s.startedAt), FinishedAt: metav1.NewTime(now), ContainerID: s.id,
	}
	if now.Sub(s.startedAt) > resetAfter {
		s.failures = 0
	}
	s.failures++
	s.notBefore = now.Add(backOff(s.failures))
	if pause := s.notBefore.Sub(now); pause > 0 && !w.stopping && restarts(w.pod, c, s) {
		s.reason, s.message = reasonCrash, fmt.Sprintf("back-off %s restarting failed container=%s pod=%s_%s(%s)", pause, c.Name, w.pod.Name, w.pod.Namespace, w.pod.UID)
		w.k.event(w.pod, v1.EventTypeWarning, "BackOff", s.message)
	}
	if w.stopping {
		w.settle()
	}
}

const maxLastWords = 4096

// lastWords is what a container wrote to its termination message file or, where it asks for that, the end of its log.
func (w *worker) lastWords(c *v1.Container, r *run, exit container.Exit) string {
	data, _ := os.ReadFile(w.termination(c)) // without the file there is no message
	if len(data) > 0 {
		return string(data[:min(len(data), maxLastWords)])
	}
	if c.TerminationMessagePolicy != v1.TerminationMessageFallbackToLogsOnError || exit.Code == 0 {
		return ""
	}
	var text strings.Builder
	if err := r.log.send(context.Background(), &text, logOptions{tail: 80, limit: -1}); err != nil {
		return ""
	}
	return text.String()[max(0, text.Len()-maxLastWords/2):]
}

func (w *worker) termination(c *v1.Container) string {
	return filepath.Join(w.k.place(w.pod.UID), "containers", c.Name, "termination-log")
}

// follow runs a container's postStart hook and its probes until it ends.
func (w *worker) follow(ctx context.Context, t target, r *run) {
	c := t.container
	if c.Lifecycle != nil && c.Lifecycle.PostStart != nil {
		if err := t.hook(ctx, c.Lifecycle.PostStart); err != nil {
			w.post(func() { w.end(c, r, "FailedPostStartHook", err, nil) })
			return
		}
	}
	if c.StartupProbe != nil && !w.awaitStartup(ctx, t, r) {
		return
	}
	if c.StartupProbe == nil && c.ReadinessProbe == nil {
		awaitPorts(ctx, c.Ports, r.process.PID())
	}
	w.post(func() {
		if w.containers[c.Name] == r {
			w.states[c.Name].started, w.states[c.Name].ready = true, c.ReadinessProbe == nil
		}
	})
	if p := c.ReadinessProbe; p != nil {
		w.k.jobs.Go(func() {
			probe(ctx, t, p, true, func(ok bool, why error) { w.post(func() { w.readiness(c, r, ok, why) }) })
		})
	}
	if p := c.LivenessProbe; p != nil {
		probe(ctx, t, p, false, func(ok bool, why error) {
			if !ok {
				w.post(func() { w.end(c, r, "Liveness probe failed", why, p.TerminationGracePeriodSeconds) })
			}
		})
	}
}

// awaitStartup is true once the startup probe has passed; where it fails for good the container is ended.
func (w *worker) awaitStartup(ctx context.Context, t target, r *run) bool {
	c := t.container
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	passed := false
	probe(ctx, t, c.StartupProbe, true, func(ok bool, why error) {
		passed = ok
		if !ok {
			w.post(func() { w.end(c, r, "Startup probe failed", why, c.StartupProbe.TerminationGracePeriodSeconds) })
		}
		cancel()
	})
	return passed
}

func (w *worker) readiness(c *v1.Container, r *run, ok bool, why error) {
	if w.containers[c.Name] != r || !w.states[c.Name].running {
		return
	}
	w.states[c.Name].ready = ok
	if !ok && !w.stopping {
		w.k.event(w.pod, v1.EventTypeWarning, "Unhealthy", "Readiness probe failed: "+why.Error())
	}
}

// end stops a container that is not well; it is started again as after any end.
func (w *worker) end(c *v1.Container, r *run, what string, why error, grace *int64) {
	if w.stopping || w.containers[c.Name] != r || !w.states[c.Name].running {
		return
	}
	w.k.event(w.pod, v1.EventTypeWarning, "Unhealthy", what+": "+why.Error())
	r.cancel() // no more news of this run
	period := w.pod.Spec.TerminationGracePeriodSeconds
	if grace != nil {
		period = grace
	}
	pause := 30 * time.Second
	if period != nil {
		pause = time.Duration(*period) * time.Second
	}
	ctx, cancel := context.WithTimeout(w.ctx, pause)
	stop := w.stopper(ctx, c)
	w.k.jobs.Go(func() {
		defer cancel()
		stop()
	})
}

// spec puts together what a container's process runs as.
func (w *worker) spec(c *v1.Container, image Image) (container.Spec, error) {
	pod := w.seen()
	env, err := environment(pod, c, image, w.k)
	if err != nil {
		return container.Spec{}, err
	}
	values := map[string]string{}
	for _, line := range env {
		name, value, _ := strings.Cut(line, "=")
		values[name] = value
	}
	spec, err := secured(pod, c, image)
	if err != nil {
		return container.Spec{}, err
	}
	spec.Env, spec.Hostname, spec.Root = env, hostname(pod), image.Root
	spec.Args = commandLine(c, image, values)
	if spec.Dir = c.WorkingDir; spec.Dir == "" {
		spec.Dir = image.Dir
	}
	if spec.Mounts, err = w.volumes.mountsOf(c, w.places, values); err != nil {
		return container.Spec{}, err
	}
	own, err := w.ownFiles(c, image)
	if err != nil {
		return container.Spec{}, err
	}
	spec.Mounts = append(spec.Mounts, own...)
	spec.Scratch = filepath.Join(w.k.place(pod.UID), "containers", c.Name, "root")
	if err := os.MkdirAll(spec.Scratch, 0o755); err != nil {
		return container.Spec{}, fmt.Errorf("making a container's root: %w", err)
	}
	return spec, nil
}

// commandLine follows the rules for command and args over the image's own.
func commandLine(c *v1.Container, image Image, values map[string]string) []string {
	args := append(append([]string(nil), image.Entrypoint...), image.Cmd...)
	switch {
	case len(c.Command) > 0:
		args = append(append([]string(nil), c.Command...), c.Args...)
	case len(c.Args) > 0:
		args = append(append([]string(nil), image.Entrypoint...), c.Args...)
	}
	for i := range args {
		args[i] = expand(args[i], values)
	}
	return args
}

// ownFiles are the files that every container gets beside its volumes, and the image's program. A volume at the same place wins.
func (w *worker) ownFiles(c *v1.Container, image Image) ([]container.Mount, error) {
	pod := w.seen()
	dir := filepath.Join(w.k.place(pod.UID), "etc")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("making a pod's files: %w", err)
	}
	var mounts []container.Mount
	for name, content := range map[string]string{
		"resolv.conf": resolvConf(pod, w.k.ClusterDNS.String()), "hosts": hostsFile(pod), "hostname": hostname(pod) + "\n",
	} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			return nil, fmt.Errorf("writing a pod's files: %w", err)
		}
		mounts = append(mounts, container.Mount{Source: path, Target: "/etc/" + name})
	}
	words := w.termination(c)
	if err := os.MkdirAll(filepath.Dir(words), 0o755); err != nil {
		return nil, fmt.Errorf("making a pod's files: %w", err)
	}
	if err := os.Remove(words); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("making a pod's files: %w", err)
	}
	if err := os.WriteFile(words, nil, 0o666); err != nil {
		return nil, fmt.Errorf("making a pod's files: %w", err)
	}
	if err := os.Chmod(words, 0o666); err != nil {
		return nil, fmt.Errorf("making a pod's files: %w", err)
	}
	if c.TerminationMessagePath != "" {
		mounts = append(mounts, container.Mount{Source: words, Target: c.TerminationMessagePath})
	}
	if image.Binary != "" && image.Root == "" && len(image.Entrypoint) > 0 {
		mounts = append(mounts, container.Mount{Source: image.Binary, Target: image.Entrypoint[0], ReadOnly: true})
	}
	taken := map[string]bool{}
	for _, m := range c.VolumeMounts {
		taken[filepath.Clean(m.MountPath)] = true
	}
	kept := mounts[:0]
	for _, m := range mounts {
		if !taken[m.Target] {
			kept = append(kept, m)
		}
	}
	return kept, nil
}

const clusterDomain = "cluster.local"

// resolvConf is /etc/resolv.conf. Names outside of the cluster cannot be resolved whatever the policy: there is no way out of the cluster's network.
func resolvConf(pod *v1.Pod, dns string) string {
	var servers, search, options []string
	if p := pod.Spec.DNSPolicy; p == v1.DNSClusterFirstWithHostNet || p == "" || p == v1.DNSClusterFirst && !pod.Spec.HostNetwork {
		servers = []string{dns}
		search = []string{pod.Namespace + ".svc." + clusterDomain, "svc." + clusterDomain, clusterDomain}
		options = []string{"ndots:5"}
	}
	if c := pod.Spec.DNSConfig; c != nil {
		servers, search = append(servers, c.Nameservers...), append(search, c.Searches...)
		for _, o := range c.Options {
			text := o.Name
			if o.Value != nil {
				text += ":" + *o.Value
			}
			options = append(options, text)
		}
	}
	var out strings.Builder
	if len(search) > 0 {
		fmt.Fprintf(&out, "search %s\n", strings.Join(search, " "))
	}
	for _, s := range servers {
		fmt.Fprintf(&out, "nameserver %s\n", s)
	}
	if len(options) > 0 {
		fmt.Fprintf(&out, "options %s\n", strings.Join(options, " "))
	}
	return out.String()
}

func hostsFile(pod *v1.Pod) string {
	var out strings.Builder
	out.WriteString("127.0.0.1\tlocalhost\n")
	names := hostname(pod)
	if pod.Spec.Subdomain != "" {
		names = names + "." + pod.Spec.Subdomain + "." + pod.Namespace + ".svc." + clusterDomain + "\t" + names
	}
	fmt.Fprintf(&out, "%s\t%s\n", pod.Status.PodIP, names)
	for _, alias := range pod.Spec.HostAliases {
		fmt.Fprintf(&out, "%s\t%s\n", alias.IP, strings.Join(alias.Hostnames, "\t"))
	}
	return out.String()
}
