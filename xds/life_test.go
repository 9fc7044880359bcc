package xds

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

// TestSlowClient reads nothing while its fleet changes two thousand times: neither do others wait for it, nor does anything queue up for it.
func TestSlowClient(t *testing.T) {
	const changes, size = 2000, 64 << 10
	s := plainServer(Config{Gate: true})
	version := func(i int) Resource {
		return Resource{Type: Secret, Name: "s", Version: fmt.Sprint(i), Bytes: [][]byte{[]byte(strings.Repeat("x", size))}}
	}
	slow := &peerOf{t, newPipe()}
	slow.toClient = make(chan *discovery.DeltaDiscoveryResponse) // whoever sends waits until it is taken
	ours(s)(slow.pipe)
	t.Cleanup(func() { slow.cancel(); <-slow.ended })
	put(s, 1, version(1))
	slow.ask(Secret, "s")
	quick := openPipe(t, s)
	quick.ask(Secret, "s")
	quick.expect(Secret, "s")

	before := heap()
	for i := 2; i <= changes; i++ {
		put(s, uint64(i), version(i))
		if got := quick.expect(Secret, "s").Resources[0].Version; got != fmt.Sprint(i) {
			t.Fatalf("change %d: the quick client got version %s", i, got)
		}
	}
	if grown := heap() - before; grown > 32*size {
		t.Errorf("the slow client made the heap grow by %d bytes", grown)
	}
	slow.expect(Secret, "s") // what was on its way when it stopped reading
	if got := slow.expect(Secret, "s").Resources[0].Version; got != fmt.Sprint(changes) {
		t.Errorf("then the slow client got version %s, not the newest", got)
	}
	slow.silent()
}

func heap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func TestDrain(t *testing.T) {
	w := newWorld(t, Config{Gate: true}, nil)
	w.apply(1, clusterOf("a", "1"))
	var streams []discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesClient
	for range 3 {
		stream, hangUp, err := w.dial(insecure.NewCredentials())
		if err != nil {
			t.Fatal(err)
		}
		defer hangUp()
		if err := stream.Send(subscribeTo(Cluster, nil, nil)); err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); err != nil {
			t.Fatal(err)
		}
		streams = append(streams, stream)
	}
	if err := w.srv.Drain(context.Background()); err != nil {
		t.Fatal(err)
	}
	for _, stream := range streams {
		if _, err := stream.Recv(); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "connect to another") {
			t.Errorf("a drained stream ended with %v", err)
		}
	}
	if got := w.srv.Stats(); got.Streams != 0 {
		t.Errorf("%d streams are left", got.Streams)
	}
	if _, _, err := w.dial(insecure.NewCredentials()); status.Code(err) != codes.Unavailable {
		t.Errorf("a stream after the drain: %v", err)
	}
	if err := w.srv.Drain(context.Background()); err != nil {
		t.Errorf("draining twice: %v", err)
	}
}

// TestDrainCutsWhoDoesNotRead instead of waiting for ever.
func TestDrainCutsWhoDoesNotRead(t *testing.T) {
	sending := make(chan struct{}, 10)
	w := newWorld(t, Config{Gate: true, SystemVersion: func(uint64) string { sending <- struct{}{}; return "" }}, nil)
	w.apply(1, Resource{Type: Secret, Name: "s", Version: "1", Bytes: [][]byte{make([]byte, 8<<20)}})
	stream, hangUp, err := w.dial(insecure.NewCredentials())
	if err != nil {
		t.Fatal(err)
	}
	defer hangUp()
	if err := stream.Send(subscribeTo(Secret, []string{"s"}, nil)); err != nil {
		t.Fatal(err)
	}
	<-sending
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := w.srv.Drain(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("drained with %v, though a client does not read", err)
	}
}

func TestTooManyNames(t *testing.T) {
	w := newWorld(t, Config{Gate: true, MaxNames: 3}, nil)
	w.apply(1, endpointsOf("a", "1", 1), endpointsOf("b", "1", 1))
	stream, hangUp, err := w.dial(insecure.NewCredentials())
	if err != nil {
		t.Fatal(err)
	}
	defer hangUp()
	for _, names := range [][]string{{"a", "b"}, {"none"}} {
		if err := stream.Send(subscribeTo(Endpoints, names, nil)); err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); err != nil {
			t.Fatalf("%v was refused below the limit: %v", names, err)
		}
	}
	if err := stream.Send(subscribeTo(Endpoints, []string{"one-too-many"}, nil)); err != nil {
		t.Fatal(err)
	}
	_, err = stream.Recv()
	if status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "at most 3 are allowed") {
		t.Errorf("got %v", err)
	}
}

// TestNothingIsLeftOfStreams that ended, however they did.
func TestNothingIsLeftOfStreams(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	block := make(chan struct{})
	hold := func(ctx context.Context, _ string) error {
		select {
		case <-block:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	s := plainServer(Config{Gate: true, Hold: hold})
	put(s, 1, clusterOf("a", "1"), endpointsOf("a", "1", 1), listenerOf("l", "1", "rc", 1), routeOf("rc", "1", "a"))
	for i := range 40 {
		p := newPipe()
		ours(s)(p)
		switch i % 4 {
		case 0: // asks for everything, answers nothing
			for ty := range NumTypes {
				p.toServer <- subscribeTo(ty, nil, nil)
			}
			<-p.toClient
		case 1: // waits in Hold
			p.toServer <- reconnect(Cluster, map[string]string{"a": "unheard of"}, "*")
		case 2: // goes at once
		case 3: // rejects
			p.toServer <- subscribeTo(Cluster, nil, nil)
			(&peerOf{t, p}).nack(<-p.toClient, "no")
		}
		p.cancel()
		<-p.ended
	}
	s.Apply([]Update{{Fleet: fleetName, Index: 2, Gone: true}})
	s.running.Wait()
	if got := s.Stats(); got.Streams != 0 || got.Fleets != 0 {
		t.Errorf("%d streams and %d fleets are left", got.Streams, got.Fleets)
	}
	close(block)
}

// TestGoodVersionAfterRejection goes out at once and ends the rejection; the rejected one is not sent again.
func TestGoodVersionAfterRejection(t *testing.T) {
	reports := make(chan Report, 1000)
	s := plainServer(Config{Gate: true, Report: func(r Report) { reports <- r }})
	put(s, 1, clusterOf("a", "good"))
	p := openPipe(t, s)
	p.ask(Listener)
	p.expect(Listener)
	p.ask(Cluster)
	p.expect(Cluster, "a")
	put(s, 2, clusterOf("a", "bad"), clusterOf("b", "1"))
	both := p.next()
	p.nack(both, "a is no good")
	for range 2 {
		r := p.next()
		if said(r)[0] == "a" {
			p.nack(r, "a is no good")
		} else {
			p.ack(r)
		}
	}
	awaitReport(t, reports, func(r Report) bool { return len(r.Rejected) == 1 && r.Rejected[0].Version == "bad" && r.Acked == 2 })
	put(s, 3, clusterOf("c", "1"))
	p.expect(Cluster, "c")
	put(s, 4, clusterOf("a", "mended"))
	if got := p.expect(Cluster, "a").Resources[0].Version; got != "mended" {
		t.Errorf("got version %s", got)
	}
	awaitReport(t, reports, func(r Report) bool { return len(r.Rejected) == 0 && r.Acked == 4 })
	p.silent()
}

func awaitReport(t testing.TB, reports <-chan Report, ok func(Report) bool) Report {
	t.Helper()
	deadline := time.After(time.Minute)
	for {
		select {
		case r := <-reports:
			if ok(r) {
				return r
			}
		case <-deadline:
			t.Fatal("the report did not come")
		}
	}
}
