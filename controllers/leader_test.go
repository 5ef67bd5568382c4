package controllers

import (
	"context"
	"errors"
	"net/netip"
	"testing"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

func TestAddressOfALeader(t *testing.T) {
	for holder, want := range map[string]string{
		"manager-5d9-x7k_10.0.0.7:18000_0b5c":      "10.0.0.7:18000",
		"manager-5d9-x7k_[fd00::7]:18000_0b5c":     "[fd00::7]:18000",
		"":                                         "", // given up
		"manager-5d9-x7k_0b5c":                     "", // an older version's
		"manager-5d9-x7k_example.com:18000_0b5c":   "", // an agent is sent to no name
		"manager-5d9-x7k_10.0.0.7_0b5c":            "",
		"manager-5d9-x7k_10.0.0.7:18000_0b5c_more": "",
	} {
		if got := addressOf(holder); got != want {
			t.Errorf("%q leads at %q, want %q", holder, got, want)
		}
	}
	lock, err := NewLeaderLock(&rest.Config{}, "meshroute-system", "manager-a", netip.MustParseAddrPort("[fd00::7]:18000"))
	if err != nil {
		t.Fatal(err)
	}
	if got := addressOf(lock.Identity()); got != "[fd00::7]:18000" {
		t.Errorf("%q is understood as %q", lock.Identity(), got)
	}
}

// store is a lease without an API server.
type store struct {
	resourcelock.Interface
	record resourcelock.LeaderElectionRecord
	err    error
}

func (s *store) Get(context.Context) (*resourcelock.LeaderElectionRecord, []byte, error) {
	return &s.record, nil, s.err
}

func (s *store) Update(_ context.Context, record resourcelock.LeaderElectionRecord) error {
	if s.err == nil {
		s.record = record
	}
	return s.err
}

func TestALeaderIsKnownFromTheLease(t *testing.T) {
	lease := &store{record: resourcelock.LeaderElectionRecord{HolderIdentity: "a_10.0.0.1:18000_x"}}
	lock := &LeaderLock{Interface: lease, changed: make(chan struct{})}
	knows := func(want string, news bool, event func()) {
		t.Helper()
		_, changed := lock.Leader()
		event()
		got, _ := lock.Leader()
		told := false
		select {
		case <-changed:
			told = true
		default:
		}
		if got != want || told != news {
			t.Errorf("leader %q, news: %v; want %q, %v", got, told, want, news)
		}
	}
	get := func() { _, _, _ = lock.Get(t.Context()) }
	update := func(holder string) func() {
		return func() { _ = lock.Update(t.Context(), resourcelock.LeaderElectionRecord{HolderIdentity: holder}) }
	}
	knows("", false, func() {})
	knows("10.0.0.1:18000", true, get)
	knows("10.0.0.1:18000", false, get)
	knows("10.0.0.2:18000", true, update("b_10.0.0.2:18000_y"))
	lease.err = errors.New("somebody else was faster")
	knows("10.0.0.2:18000", false, update("c_10.0.0.3:18000_z"))
	lease.err = nil
	knows("", true, update(""))
}
