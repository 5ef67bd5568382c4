package report

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"

	"meshroute.io/meshroute/internal/report/reportv1"
	"meshroute.io/meshroute/internal/xds"
)

// Leader tells the address (host:port) at which the manager that leads takes
// reports, and what is closed when there is news. No address: nobody leads at
// present, or nobody knows.
type Leader func() (address string, changed <-chan struct{})

// Alone is the Leader where there is one manager.
func Alone(address string) Leader {
	return func() (string, <-chan struct{}) { return address, nil }
}

// Server tells agents who leads, and takes their reports. It takes them without
// leading, too: who was told so by a manager with old news will hear better from
// it soon, and meanwhile nothing is lost.
type Server struct {
	reportv1.UnimplementedReportsServer
	configuration *xds.Server
	identify      func(context.Context) (xds.Peer, error)
	leader        Leader
}

// NewServer returns a Server that tells configuration how far pods are, and
// asks identify who a stream's peer is.
func NewServer(configuration *xds.Server, identify func(context.Context) (xds.Peer, error), leader Leader) *Server {
	return &Server{configuration: configuration, identify: identify, leader: leader}
}

// Register makes g serve reports.
func (s *Server) Register(g *grpc.Server) { reportv1.RegisterReportsServer(g, s) }

func (s *Server) peer(ctx context.Context) (xds.Peer, error) {
	peer, err := s.identify(ctx)
	if err != nil {
		return peer, grpcstatus.Errorf(codes.Unauthenticated, "the peer's certificate names no gateway: %v", err)
	}
	return peer, nil
}

// WatchLeader tells one agent who leads.
func (s *Server) WatchLeader(_ *reportv1.WatchLeaderRequest, stream grpc.ServerStreamingServer[reportv1.Leader]) error {
	if _, err := s.peer(stream.Context()); err != nil {
		return err
	}
	for {
		address, changed := s.leader()
		if err := stream.Send(&reportv1.Leader{Address: address}); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}

// Report takes the reports of one pod.
func (s *Server) Report(stream grpc.ClientStreamingServer[reportv1.PodReport, reportv1.ReportResponse]) error {
	peer, err := s.peer(stream.Context())
	if err != nil {
		return err
	}
	pod := s.configuration.Pod(peer)
	defer pod.Close()
	// The agent wants to know whether it has reached somebody.
	if err := stream.SendHeader(nil); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() {
		for {
			message, err := stream.Recv()
			if err != nil {
				ended <- err
				return
			}
			if state := message.GetState(); state != nil {
				pod.Report(state)
			}
		}
	}()
	select {
	case err := <-ended:
		return err
	case <-pod.Done():
		return grpcstatus.Error(codes.Unavailable, "the gateway was deleted")
	}
}
