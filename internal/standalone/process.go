package standalone

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/apimachinery/pkg/util/wait"
)

// stopTime is how long Envoy and agent may take to end.
const stopTime = 5 * time.Second

// command is a program to keep running.
type command struct {
	name string
	path string
	args []string
	// log is the file that its output goes to, anew at each start of the
	// manager.
	log string
	// stopTime is how long it may take to end when it is asked to.
	stopTime time.Duration
}

// supervise keeps a program running until ctx ends: when it exits it is started
// again, after a pause that grows while it exits early.
func supervise(ctx context.Context, c command, log logr.Logger) {
	pause := newPause()
	for {
		started := time.Now()
		err := run(ctx, c)
		if ctx.Err() != nil {
			return
		}
		if time.Since(started) > time.Minute {
			pause = newPause()
		}
		next := pause.Step()
		log.Info("A process ended and is started again", "process", c.name, "reason", exitReason(err), "after", next.String(), "log", c.log)
		select {
		case <-ctx.Done():
			return
		case <-time.After(next):
		}
	}
}

func newPause() *wait.Backoff {
	return &wait.Backoff{Duration: 100 * time.Millisecond, Factor: 2, Jitter: 0.1, Steps: 8, Cap: 10 * time.Second}
}

func exitReason(err error) string {
	if err == nil {
		return "it ended by itself"
	}
	return err.Error()
}

// run starts a program and waits for its end.
func run(ctx context.Context, c command) error {
	if err := os.MkdirAll(filepath.Dir(c.log), 0o700); err != nil {
		return err
	}
	output, err := os.OpenFile(c.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = output.Close() }()

	process := exec.Command(c.path, c.args...)
	process.Stdout, process.Stderr = output, output
	// Not in the terminal's group: the manager decides the order in which
	// things end. And whatever ends the manager ends its processes, so that the
	// next one finds the ports free.
	process.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}

	var result error // once ended is closed
	ended := make(chan struct{})
	startedOrFailed := make(chan error, 1)
	go func() {
		// The signal is sent when the thread ends that started the process.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if err := process.Start(); err != nil {
			startedOrFailed <- fmt.Errorf("start %s: %w", c.path, err)
			return
		}
		startedOrFailed <- nil
		result = process.Wait()
		close(ended)
	}()
	if err := <-startedOrFailed; err != nil {
		return err
	}
	select {
	case <-ended:
		return result
	case <-ctx.Done():
	}
	_ = process.Process.Signal(syscall.SIGTERM)
	select {
	case <-ended:
	case <-time.After(c.stopTime):
		_ = process.Process.Kill()
		<-ended
	}
	return ctx.Err()
}

// lockFile makes sure that one manager at a time uses a folder.
func lockFile(path string) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = file.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("another standalone manager uses %s: stop it, or choose another --state-dir", filepath.Dir(path))
		}
		return nil, err
	}
	return file, nil
}
