package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// version is set by the linker for a release.
var version = ""

// envoyVersion is the Envoy that resources are made for and measured with.
const envoyVersion = "1.40.0"

// buildVersion is the release, else the commit that was built, else "devel".
func buildVersion() string {
	if version != "" {
		return version
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "devel"
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && len(s.Value) >= 12 {
			return s.Value[:12]
		}
	}
	return "devel"
}

// newVersionCommand is `fleetgate version`.
func newVersionCommand(t terminal) *cobra.Command {
	var format string
	cmd := &cobra.Command{Use: "version", Short: "Say which version this is", Args: cobra.NoArgs}
	addFormat(cmd, &format, "json, yaml")
	cmd.RunE = func(*cobra.Command, []string) error {
		v := versionInfo{APIVersion: apiVersion, Kind: "Version", Version: buildVersion(), Go: runtime.Version(), Envoy: envoyVersion}
		if format == "" {
			_, err := fmt.Fprintf(t.out, "fleetgate %s (%s, for Envoy %s)\n", v.Version, v.Go, v.Envoy)
			return err
		}
		return printList(t.out, format, v, &table{}, "")
	}
	return cmd
}
