package report

import (
	"context"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"k8s.io/apimachinery/pkg/util/wait"

	"meshroute.io/meshroute/internal/report/reportv1"
)

// reportPause is the least time between two reports: what happens meanwhile is
// told together.
const reportPause = 50 * time.Millisecond

// ReporterOptions are what a Reporter needs.
type ReporterOptions struct {
	// Dial connects to the manager at an address (host:port).
	Dial func(ctx context.Context, address string) (*grpc.ClientConn, error)
	// Progress tells how far Envoy is; see xds.Relay.
	Progress func() []*reportv1.TypeState
	// Unhealthy tells which endpoints fail health checks; nil: nobody knows.
	Unhealthy func() []*reportv1.UnhealthyEndpoint
	Log       logr.Logger
}

// Reporter tells the manager that leads how its pod is: at once, whenever that
// changes, and everything anew whenever another manager leads.
type Reporter struct {
	options ReporterOptions
	ring    chan struct{}

	mu            sync.Mutex
	leader        string
	moved         chan struct{} // closed when leader changes
	networkPolicy reportv1.NetworkPolicy
	draining      bool
}

// NewReporter returns a Reporter.
func NewReporter(options ReporterOptions) *Reporter {
	return &Reporter{options: options, ring: make(chan struct{}, 1), moved: make(chan struct{})}
}

// Ring says that Progress or Unhealthy have moved. It never blocks.
func (r *Reporter) Ring() {
	select {
	case r.ring <- struct{}{}:
	default:
	}
}

// SetNetworkPolicy has it told what the pod found out about its network.
func (r *Reporter) SetNetworkPolicy(found reportv1.NetworkPolicy) {
	r.mu.Lock()
	r.networkPolicy = found
	r.mu.Unlock()
	r.Ring()
}

// Leader is the address (host:port) of the manager that takes reports; empty
// where it is not known.
func (r *Reporter) Leader() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.leader
}

// SetDraining has it told that the pod is about to end.
func (r *Reporter) SetDraining() {
	r.mu.Lock()
	r.draining = true
	r.mu.Unlock()
	r.Ring()
}

func (r *Reporter) state() *reportv1.PodState {
	state := &reportv1.PodState{Types: r.options.Progress()}
	if r.options.Unhealthy != nil {
		state.Unhealthy = r.options.Unhealthy()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	state.NetworkPolicy, state.Draining = r.networkPolicy, r.draining
	return state
}

func (r *Reporter) setLeader(address string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.leader == address {
		return
	}
	r.leader = address
	close(r.moved)
	r.moved = make(chan struct{})
	if address == "" {
		r.options.Log.Info("No manager leads at present: there is nobody to report to")
	} else {
		r.options.Log.Info("Another manager leads", "address", address)
	}
}

// Follow asks the manager at the other end of a connection who leads, for as
// long as ctx. What it heard last stands when the connection has ended.
func (r *Reporter) Follow(ctx context.Context, conn *grpc.ClientConn) {
	for ctx.Err() == nil {
		err := r.follow(ctx, conn)
		pause := time.After(time.Second)
		if grpcstatus.Code(err) == codes.Unimplemented {
			pause = nil // an older manager, which is about to be replaced
		}
		select {
		case <-ctx.Done():
		case <-pause:
		}
	}
}

func (r *Reporter) follow(ctx context.Context, conn *grpc.ClientConn) error {
	stream, err := reportv1.NewReportsClient(conn).WatchLeader(ctx, &reportv1.WatchLeaderRequest{})
	if err != nil {
		return err
	}
	for {
		leader, err := stream.Recv()
		if err != nil {
			return err
		}
		r.setLeader(leader.GetAddress())
	}
}

// Run reports until ctx ends.
func (r *Reporter) Run(ctx context.Context) error {
	first := wait.Backoff{Duration: 100 * time.Millisecond, Factor: 2, Jitter: 0.5, Steps: 100, Cap: 2 * time.Second}
	backoff := first
	for ctx.Err() == nil {
		r.mu.Lock()
		leader, moved := r.leader, r.moved
		r.mu.Unlock()
		var again <-chan time.Time
		if leader != "" {
			reached, err := r.reportTo(ctx, leader, moved)
			if reached {
				backoff = first
			}
			delay := backoff.Step()
			again = time.After(delay)
			select {
			case <-moved:
			case <-ctx.Done():
			default:
				r.options.Log.Info("Reports to the manager that leads ended", "address", leader, "reason", err, "retryIn", delay.String())
			}
		}
		select {
		case <-ctx.Done():
		case <-moved:
			backoff = first
		case <-again:
		}
	}
	return nil
}

// reportTo reports to one manager until the stream breaks or another leads.
func (r *Reporter) reportTo(ctx context.Context, address string, moved <-chan struct{}) (reached bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	conn, err := r.options.Dial(ctx, address)
	if err != nil {
		return false, err
	}
	defer func() { _ = conn.Close() }()
	go func() {
		select {
		case <-moved:
			cancel()
		case <-ctx.Done():
		}
	}()
	stream, err := reportv1.NewReportsClient(conn).Report(ctx)
	if err != nil {
		return false, err
	}
	if _, err := stream.Header(); err != nil {
		return false, err
	}
	ended := make(chan error, 1)
	go func() { ended <- stream.RecvMsg(&reportv1.ReportResponse{}) }() // there is none before the end
	var told *reportv1.PodState
	for {
		if state := r.state(); !proto.Equal(state, told) {
			if stream.Send(&reportv1.PodReport{State: state}) != nil {
				return true, <-ended // it knows why
			}
			told = state
		}
		select {
		case err := <-ended:
			return true, err
		case <-time.After(reportPause):
		}
		select {
		case err := <-ended:
			return true, err
		case <-r.ring:
		}
	}
}
