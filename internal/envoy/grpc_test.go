package envoy

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"meshroute.io/meshroute/internal/model"
)

// startGRPC serves the protocol of health checks, and adds a trailer of its own.
func startGRPC(t *testing.T) model.Endpoint {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(grpc.UnaryInterceptor(func(ctx context.Context, request any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
		if err := grpc.SetTrailer(ctx, metadata.Pairs("x-trailer", "at the end")); err != nil {
			return nil, err
		}
		return handle(ctx, request)
	}))
	grpc_health_v1.RegisterHealthServer(server, health.NewServer())
	go server.Serve(listener)
	t.Cleanup(server.Stop)
	address := listener.Addr().(*net.TCPAddr)
	return model.Endpoint{Address: address.IP.String(), Port: int32(address.Port)}
}

// gRPC goes through with its trailers, streams among it, and its deadlines.
func TestGRPC(t *testing.T) {
	t.Parallel()
	in := routesTo(t, map[string]model.Route{
		"grpc":  {Backends: to("grpc")},
		"spare": {Backends: to("failover"), FailsOver: true},
		"empty": {Backends: to("empty")},
	}, map[string][]model.Endpoint{"grpc": {startGRPC(t)}, "dead": {dead(t)}})
	in.Gateway.Clusters = []model.Cluster{{Name: "grpc", HTTP2: true}, {Name: "dead", BackedUp: true}, {Name: "empty", HTTP2: true}}
	in.Gateway.Failovers = []model.Failover{{Name: "failover", Members: []string{"dead", "grpc"}}}
	address := startEnvoy(t, in)
	client := func(host string) grpc_health_v1.HealthClient {
		t.Helper()
		conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithAuthority(host), grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return grpc_health_v1.NewHealthClient(conn)
	}

	for _, host := range []string{"grpc", "spare"} { // HTTP/1.1 before it, in the latter
		var trailer metadata.MD
		answer, err := client(host).Check(t.Context(), &grpc_health_v1.HealthCheckRequest{}, grpc.Trailer(&trailer))
		if diff := cmp.Diff([]string{"at the end"}, trailer.Get("x-trailer")); diff != "" {
			t.Errorf("%s: trailer (-want +got):\n%s", host, diff)
		}
		if err != nil || answer.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
			t.Errorf("%s: %v %v", host, answer, err)
		}
	}
	_, err := client("grpc").Check(t.Context(), &grpc_health_v1.HealthCheckRequest{Service: "nobody's"})
	if got := status.Convert(err); got.Code() != codes.NotFound || got.Message() != "unknown service" {
		t.Errorf("what the backend says in trailers became %v", err)
	}
	if _, err := client("empty").Check(t.Context(), &grpc_health_v1.HealthCheckRequest{}); status.Code(err) != codes.Unavailable {
		t.Errorf("without endpoints: %v", err)
	}

	stream, err := client("grpc").Watch(t.Context(), &grpc_health_v1.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if update, err := stream.Recv(); err != nil || update.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
		t.Errorf("the first message of a stream: %v %v", update, err)
	}
	began := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	stream, err = client("grpc").Watch(ctx, &grpc_health_v1.HealthCheckRequest{})
	for err == nil {
		_, err = stream.Recv()
	}
	if took := time.Since(began); status.Code(err) != codes.DeadlineExceeded || took > 5*time.Second {
		t.Errorf("a deadline of 0.3 s ended after %v: %v", took, err)
	}
}
