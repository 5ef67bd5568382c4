package standalone

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/go-logr/logr/testr"
)

// shell is a command whose output is its log.
func shell(t *testing.T, script string) command {
	t.Helper()
	return command{
		name: "shell", path: "/bin/sh", args: []string{"-c", script},
		log: filepath.Join(t.TempDir(), "below", "log"), stopTime: 10 * time.Second,
	}
}

// output waits until the log is as it should be.
func (c command) output(t *testing.T, what string, done func(lines []string) bool) []string {
	t.Helper()
	timeout := time.After(10 * time.Second)
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	for {
		content, err := os.ReadFile(c.log)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		if lines := strings.Fields(string(content)); done(lines) {
			return lines
		}
		select {
		case <-ticker.C:
		case <-timeout:
			t.Fatalf("never came: %s; output: %q", what, content)
		}
	}
}

// supervised runs a command until stop, which waits for its end.
func supervised(t *testing.T, c command, log logr.Logger) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		supervise(ctx, c, log)
	}()
	stop = func() {
		cancel()
		select {
		case <-done:
		case <-time.After(10 * time.Second):
			t.Fatal("it did not end")
		}
	}
	t.Cleanup(stop)
	return stop
}

func atLeast(n int) func([]string) bool { return func(lines []string) bool { return len(lines) >= n } }

func TestSuperviseStartsAgain(t *testing.T) {
	for name, script := range map[string]string{"it ended by itself": "echo $$", "exit status 3": "echo $$; exit 3"} {
		t.Run(name, func(t *testing.T) {
			c := shell(t, script)
			stop := supervised(t, c, testr.New(t))
			pids := c.output(t, "two runs", atLeast(2))
			if pids[0] == pids[1] {
				t.Errorf("the same process twice: %v", pids)
			}
			stop()
		})
	}
}

func TestSuperviseEndsOnCancel(t *testing.T) {
	c := shell(t, `trap 'echo asked; exit 0' TERM; echo $$; while :; do sleep 0.01; done`)
	stop := supervised(t, c, testr.New(t))
	pid := c.output(t, "its start", atLeast(1))[0]
	stop()
	if lines := c.output(t, "its end", atLeast(2)); len(lines) != 2 || lines[1] != "asked" {
		t.Errorf("output %q: it was to be asked once, and not to be started again", lines)
	}
	gone(t, pid)
}

func TestSuperviseKillsWhatDoesNotEnd(t *testing.T) {
	c := shell(t, `trap '' TERM; echo $$; while :; do sleep 0.01; done`)
	c.stopTime = 100 * time.Millisecond
	stop := supervised(t, c, testr.New(t))
	pid := c.output(t, "its start", atLeast(1))[0]
	started := time.Now()
	stop()
	if took := time.Since(started); took < c.stopTime {
		t.Errorf("it was killed after %v", took)
	}
	gone(t, pid)
}

func gone(t *testing.T, pid string) {
	t.Helper()
	number, err := strconv.Atoi(pid)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(number, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("process %d is there still: %v", number, err)
	}
}

func TestRunSaysWhatCannotBeStarted(t *testing.T) {
	c := shell(t, "")
	c.path = filepath.Join(t.TempDir(), "none")
	if err := run(t.Context(), c); err == nil || !strings.Contains(err.Error(), "start "+c.path) {
		t.Errorf("error %v", err)
	}
}

func TestLockFileRefusesASecondManager(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	first, err := lockFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want := "another standalone manager uses " + filepath.Dir(path) + ": stop it, or choose another --state-dir"
	if _, err := lockFile(path); err == nil || err.Error() != want {
		t.Errorf("error %v, wanted %s", err, want)
	}
	first.Close()
	again, err := lockFile(path)
	if err != nil {
		t.Fatalf("after the first has ended: %v", err)
	}
	again.Close()
}
