package main

import (
	"flag"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

var update = flag.Bool("update", false, "rewrite the expected files in testdata/script")

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"fleetgate": main})
}

// TestScripts runs sessions of the command line: testdata/script/*.txtar, each begins with a sentence. The command `replica NAME FILE [STATUS]` starts
// an admin port that answers /v1/view with a file, and sets $NAME to its address.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script", UpdateScripts: *update, RequireExplicitExec: true, RequireUniqueNames: true,
		Setup: func(e *testscript.Env) error {
			e.Setenv("FLEETGATE_SERVER", "")
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"replica": fakeReplica, "exits": exits},
	})
}

func fakeReplica(ts *testscript.TestScript, _ bool, args []string) {
	body := ts.ReadFile(args[1])
	ready := http.StatusOK
	if len(args) > 2 && args[2] == "unready" {
		ready = http.StatusServiceUnavailable
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/view", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(body)) })
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("ok")) })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(ready) })
	s := httptest.NewServer(mux)
	ts.Defer(s.Close)
	ts.Setenv(args[0], strings.TrimPrefix(s.URL, "http://"))
}

// exits runs a command and compares its exit code, which `exec` only knows as zero or not.
func exits(ts *testscript.TestScript, _ bool, args []string) {
	want := args[0]
	code := "0"
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		code = strings.TrimPrefix(err.Error(), "exit status ")
	}
	if code != want {
		ts.Fatalf("%s exited with %s, want %s", strings.Join(args[1:], " "), code, want)
	}
}

func TestVersionIsNeverEmpty(t *testing.T) {
	if buildVersion() == "" {
		t.Error("a binary without a version")
	}
}
