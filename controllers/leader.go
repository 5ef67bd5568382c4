package controllers

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/util/uuid"
	coordinationv1client "k8s.io/client-go/kubernetes/typed/coordination/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

// LeaderLease is the name of the Lease that one replica of several holds, the
// one that writes to the API.
const LeaderLease = "meshroute-manager"

// How the lease is held. Others look each RetryPeriod or so: that is how long it
// takes until one leads in the place of a leader that ends, and of one that
// vanishes LeaseDuration more. A leader that cannot reach the API server for
// RenewDeadline ends.
const (
	LeaseDuration = 10 * time.Second
	RenewDeadline = 7 * time.Second
	RetryPeriod   = 2 * time.Second
)

// LeaderLock is the lock on the Lease. Whoever holds it writes there who it is
// and where it takes reports: every replica reads the Lease all the time anyway,
// and so knows where to send agents.
type LeaderLock struct {
	resourcelock.Interface

	mu      sync.Mutex
	holder  string
	changed chan struct{}
}

// NewLeaderLock returns the lock of a replica: its pod, and the address at which
// it takes reports.
func NewLeaderLock(config *rest.Config, namespace, pod string, address netip.AddrPort) (*LeaderLock, error) {
	config = rest.AddUserAgent(config, "leader-election")
	config.Timeout = RenewDeadline / 2 // one request that hangs must not cost the lead
	client, err := coordinationv1client.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("connect to the API server: %w", err)
	}
	lease := &resourcelock.LeaseLock{Client: client}
	lease.LeaseMeta.Namespace, lease.LeaseMeta.Name = namespace, LeaderLease
	lease.LockConfig.Identity = strings.Join([]string{pod, address.String(), string(uuid.NewUUID())}, "_")
	return &LeaderLock{Interface: lease, changed: make(chan struct{})}, nil
}

// addressOf finds the address in what a holder calls itself. An older version
// of the operator does not name one.
func addressOf(holder string) string {
	parts := strings.Split(holder, "_")
	if len(parts) != 3 {
		return ""
	}
	address, err := netip.ParseAddrPort(parts[1])
	if err != nil {
		return ""
	}
	return address.String()
}

// Leader tells where the replica that leads takes reports, and what is closed
// when another leads. It may have vanished: nobody knows before its time is up.
func (l *LeaderLock) Leader() (address string, changed <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return addressOf(l.holder), l.changed
}

func (l *LeaderLock) note(holder string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if holder != l.holder {
		l.holder = holder
		close(l.changed)
		l.changed = make(chan struct{})
	}
}

// Get reads the lease, and takes note of its holder.
func (l *LeaderLock) Get(ctx context.Context) (*resourcelock.LeaderElectionRecord, []byte, error) {
	record, raw, err := l.Interface.Get(ctx)
	if err == nil {
		l.note(record.HolderIdentity)
	}
	return record, raw, err
}

// Create makes the lease, and takes note of its holder.
func (l *LeaderLock) Create(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	err := l.Interface.Create(ctx, record)
	if err == nil {
		l.note(record.HolderIdentity)
	}
	return err
}

// Update renews, takes or gives up the lease, and takes note of its holder.
func (l *LeaderLock) Update(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	err := l.Interface.Update(ctx, record)
	if err == nil {
		l.note(record.HolderIdentity)
	}
	return err
}
