// SPDX-License-Identifier: Apache-2.0

// Command calls is a gRPC server for trying routes: it answers every method of every service with the message that it got, and says in the metadata which pod answered which method.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"syscall"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/emptypb"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := serve(ctx, ":9000"); err != nil {
		fmt.Fprintln(os.Stderr, "calls:", err)
		os.Exit(1)
	}
}

// serve answers until ctx ends, and then finishes what it has begun.
func serve(ctx context.Context, address string) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	server := grpc.NewServer(grpc.UnknownServiceHandler(answer))
	healthpb.RegisterHealthServer(server, health.NewServer())
	defer context.AfterFunc(ctx, server.GracefulStop)()
	return server.Serve(l)
}

// answer sends each message back. Any message can be read as an empty one: what it holds are fields that this program does not know, and they are kept.
func answer(_ any, stream grpc.ServerStream) error {
	method, _ := grpc.MethodFromServerStream(stream)
	pod, err := os.Hostname()
	if err != nil {
		return err
	}
	if err := stream.SetHeader(metadata.Pairs("x-pod", pod, "x-method", method)); err != nil {
		return err
	}
	for {
		var message emptypb.Empty
		if err := stream.RecvMsg(&message); err != nil {
			return ended(err)
		}
		if err := stream.SendMsg(&message); err != nil {
			return err
		}
	}
}

// ended is nil where the caller has said all that he had to say.
func ended(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}
