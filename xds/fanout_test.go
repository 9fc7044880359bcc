package xds

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	server "github.com/envoyproxy/go-control-plane/pkg/server/v3"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
)

const (
	fanStreams = 1000
	fanNames   = 1000 // of endpoints, on every stream
	fanEnv     = "XDS_FANOUT_CLIENTS"
)

// BenchmarkFanOut changes the endpoints of one of a thousand clusters that a thousand streams have subscribed to, and compares the server's CPU time for that, ACKs included, with go-control-plane's
// and with what nothing can be below: a write of the same bytes, made once, to every socket. The clients are another process, so that their time does not count.
func BenchmarkFanOut(b *testing.B) {
	fans := []struct {
		name  string
		serve func(*testing.B, net.Listener) (publish func(version int))
	}{{"floor", serveFloor}, {"ours", serveOurs}, {"linear", serveLinear}, {"snapshot", serveSnapshot}}
	var floor time.Duration
	for _, f := range fans {
		cost := measureFan(b, f.serve)
		if floor == 0 {
			floor = cost
			b.ReportMetric(float64(cost.Microseconds())/1000, "floor-cpu-ms")
			continue
		}
		b.ReportMetric(float64(cost)/float64(floor), f.name+"/floor")
	}
	b.ReportMetric(0, "ns/op")
}

// measureFan gives the CPU time of one change.
func measureFan(b *testing.B, serve func(*testing.B, net.Listener) func(int)) time.Duration {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer lis.Close()
	publish := serve(b, lis)
	cmd := exec.Command(os.Args[0], "-test.run=^TestFanOutClients$")
	cmd.Env = append(os.Environ(), fanEnv+"="+lis.Addr().String())
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	lines := bufio.NewScanner(out)
	heard := func(what string) {
		if !lines.Scan() || lines.Text() != what {
			b.Fatalf("waited for %s, got %q %v", what, lines.Text(), lines.Err())
		}
	}
	heard("1")
	publish(2) // warms up
	heard("2")
	before := cpuTime(b)
	for i := range b.N {
		publish(3 + i)
		heard(strconv.Itoa(3 + i))
	}
	return (cpuTime(b) - before) / time.Duration(b.N)
}

func cpuTime(b *testing.B) time.Duration {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		b.Fatal(err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

func fanName(i int) string { return fmt.Sprintf("cluster-%04d", i) }

// fanEndpoints are all endpoints; the first name's say which version it is.
func fanEndpoints(version int) map[string]types.Resource {
	out := map[string]types.Resource{}
	for i := range fanNames {
		out[fanName(i)] = fanAssignment(i, 80)
	}
	out[fanName(0)] = fanAssignment(0, version)
	return out
}

func fanAssignment(i, port int) *endpointv3.ClusterLoadAssignment {
	return &endpointv3.ClusterLoadAssignment{ClusterName: fanName(i), Endpoints: []*endpointv3.LocalityLbEndpoints{{LbEndpoints: []*endpointv3.LbEndpoint{
		{HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: address("10.0.0.1", uint32(port))}}}}}}}
}

func serveOurs(b *testing.B, lis net.Listener) func(int) {
	s := plainServer(Config{Gate: true, Replica: "replica-0"})
	var all []Resource
	for name, r := range fanEndpoints(1) {
		all = append(all, resource(Endpoints, name, "1", r))
	}
	put(s, 1, all...)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, lis, nil) }()
	b.Cleanup(func() { cancel(); <-done })
	return func(v int) {
		put(s, uint64(v), resource(Endpoints, fanName(0), strconv.Itoa(v), fanAssignment(0, v)))
	}
}

func serveGCP(b *testing.B, lis net.Listener, c cache.Cache) {
	g := grpc.NewServer(grpc.StaticStreamWindowSize(1<<20), grpc.StaticConnWindowSize(1<<20))
	discovery.RegisterAggregatedDiscoveryServiceServer(g, server.NewServer(context.Background(), c, nil))
	done := make(chan error, 1)
	go func() { done <- g.Serve(lis) }()
	b.Cleanup(func() { g.Stop(); <-done })
}

func serveLinear(b *testing.B, lis net.Listener) func(int) {
	c := cache.NewLinearCache(URLs[Endpoints], cache.WithInitialResources(fanEndpoints(1)))
	serveGCP(b, lis, c)
	return func(v int) {
		if err := c.UpdateResource(fanName(0), fanAssignment(0, v)); err != nil {
			b.Fatal(err)
		}
	}
}

func serveSnapshot(b *testing.B, lis net.Listener) func(int) {
	c := cache.NewSnapshotCache(false, oneNode{}, nil)
	all := fanEndpoints(1)
	publish := func(v int) {
		all = maps.Clone(all)
		all[fanName(0)] = fanAssignment(0, v)
		var list []types.Resource
		for _, r := range all {
			list = append(list, r)
		}
		snap, err := cache.NewSnapshot(strconv.Itoa(v), map[string][]types.Resource{URLs[Endpoints]: list})
		if err == nil {
			err = c.SetSnapshot(context.Background(), "node", snap)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
	publish(1)
	serveGCP(b, lis, c)
	return publish
}

// serveFloor writes frames that were made once, and throws away what it reads.
func serveFloor(b *testing.B, lis net.Listener) func(int) {
	conns := make(chan net.Conn, fanStreams)
	first := fanFrame(b, 1)
	go func() {
		for {
			c, err := lis.Accept()
			if err != nil {
				return
			}
			var hello bytes.Buffer
			_ = http2.NewFramer(&hello, nil).WriteSettings()
			_, _ = c.Write(append(hello.Bytes(), first...))
			go func() { _, _ = io.Copy(io.Discard, c) }()
			conns <- c
		}
	}()
	var all []net.Conn
	b.Cleanup(func() {
		for _, c := range all {
			_ = c.Close()
		}
	})
	return func(v int) {
		for len(all) < fanStreams {
			all = append(all, <-conns)
		}
		frame := fanFrame(b, v)
		for _, c := range all {
			if _, err := c.Write(frame); err != nil {
				b.Fatal(err)
			}
		}
	}
}

// fanFrame is a whole HTTP/2 DATA frame with the response that our server sends.
func fanFrame(b *testing.B, v int) []byte {
	it := prepare([]Resource{resource(Endpoints, fanName(0), strconv.Itoa(v), fanAssignment(0, v))})[0]
	message := append(it.entry.Materialize(), tail(URLs[Endpoints], strconv.Itoa(v), "", "replica-0", nil).ReadOnlyData()...)
	var out bytes.Buffer
	if err := http2.NewFramer(&out, nil).WriteData(1, false, grpcMessage(message)); err != nil {
		b.Fatal(err)
	}
	return out.Bytes()
}

func grpcMessage(m []byte) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(m))), m...)
}

// TestFanOutClients is the process of the clients: it says each time that all of them have got one more response.
func TestFanOutClients(t *testing.T) {
	address := os.Getenv(fanEnv)
	if address == "" {
		return // started by BenchmarkFanOut alone
	}
	got := make(chan error, fanStreams)
	for range fanStreams {
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		go func() { got <- fanClient(c, got) }()
	}
	for round := 1; ; round++ {
		for range fanStreams {
			if err := <-got; err != nil {
				t.Fatal(err)
			}
		}
		fmt.Println(round)
	}
}

// fanClient subscribes, and ACKs each response as soon as it is whole; nonces are counted by every server here.
func fanClient(c net.Conn, got chan<- error) error {
	w := bufio.NewWriter(c)
	f := http2.NewFramer(w, bufio.NewReaderSize(c, 32<<10))
	_, _ = w.WriteString(http2.ClientPreface)
	_ = f.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1<<31 - 1})
	_ = f.WriteWindowUpdate(0, 1<<30)
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	for _, h := range [][2]string{{":method", "POST"}, {":scheme", "http"}, {":path", "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"},
		{":authority", "x"}, {"content-type", "application/grpc"}, {"te", "trailers"}} {
		_ = enc.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]})
	}
	_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndHeaders: true})
	say := func(r *discovery.DeltaDiscoveryRequest) error {
		b, err := proto.Marshal(r)
		for m := grpcMessage(b); err == nil && len(m) > 0; {
			n := min(len(m), 16<<10)
			err = f.WriteData(1, false, m[:n])
			m = m[n:]
		}
		if err == nil {
			err = w.Flush()
		}
		return err
	}
	names := make([]string, fanNames)
	for i := range names {
		names[i] = fanName(i)
	}
	if err := say(&discovery.DeltaDiscoveryRequest{Node: &corev3.Node{Id: "node"}, TypeUrl: URLs[Endpoints], ResourceNamesSubscribe: names}); err != nil {
		return err
	}
	var have []byte
	for nonce := 1; ; {
		frame, err := f.ReadFrame()
		if err != nil {
			return err
		}
		switch frame := frame.(type) {
		case *http2.PingFrame:
			if !frame.IsAck() {
				_ = f.WritePing(true, frame.Data)
				_ = w.Flush()
			}
		case *http2.DataFrame:
			have = append(have, frame.Data()...)
			for len(have) >= 5 && len(have) >= 5+int(binary.BigEndian.Uint32(have[1:])) {
				have = have[5+int(binary.BigEndian.Uint32(have[1:])):]
				if err := say(&discovery.DeltaDiscoveryRequest{TypeUrl: URLs[Endpoints], ResponseNonce: strconv.Itoa(nonce)}); err != nil {
					return err
				}
				nonce++
				got <- nil
			}
		}
	}
}
