package main

import (
	"context"
	"errors"
	"net"
	"net/http"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"

	"meshroute.io/meshroute/internal/identity"
	"meshroute.io/meshroute/internal/report"
	"meshroute.io/meshroute/internal/xds"
)

// maxConnectionAge bounds how long an agent stays connected without proving
// itself anew: its certificate lives for 12 hours.
const maxConnectionAge = 4 * time.Hour

// serveXDS serves configuration to agents, and takes their reports.
func serveXDS(ctx context.Context, listener net.Listener, server *xds.Server, leader report.Leader, authority *identity.Authority, names []string) error {
	tls := credentials.NewTLS(authority.MutualTLS(names, clock.RealClock{}))
	grpcServer := grpc.NewServer(append(xds.ServerOptions(maxConnectionAge), grpc.Creds(tls))...)
	server.Register(grpcServer)
	report.NewServer(server, peer, leader).Register(grpcServer)
	go func() {
		<-ctx.Done()
		grpcServer.Stop()
	}()
	return grpcServer.Serve(listener)
}

// serveCertificates answers agents that ask for a certificate.
func serveCertificates(ctx context.Context, listener net.Listener, authority *identity.Authority,
	verify func(context.Context, string, identity.Gateway) error, names []string,
) error {
	server := &http.Server{
		Handler:           authority.Handler(verify, clock.RealClock{}, ctrl.Log.WithName("certificates")),
		TLSConfig:         authority.ServerTLS(names, clock.RealClock{}),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      10 * time.Second,
		MaxHeaderBytes:    16 << 10,
	}
	go func() {
		<-ctx.Done()
		_ = server.Close()
	}()
	if err := server.ServeTLS(listener, "", ""); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
