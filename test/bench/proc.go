package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// cpu is the CPU time that processes have used (user and system), to the
// nanosecond: what /proc/PID/stat tells, which counts hundredths of a second.
func cpu(pids ...int) time.Duration {
	var all time.Duration
	for _, pid := range pids {
		// clock_getcpuclockid(3), as the kernel numbers the clocks of processes.
		const scheduled = 2
		clock := int32(^pid)<<3 | scheduled
		var used unix.Timespec
		if unix.ClockGettime(clock, &used) == nil {
			all += time.Duration(used.Nano())
		}
	}
	return all
}

// processes are a process and its children.
func processes(pid int) []int {
	all := []int{pid}
	content, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	for field := range strings.FieldsSeq(string(content)) {
		if child, err := strconv.Atoi(field); err == nil {
			all = append(all, processes(child)...)
		}
	}
	return all
}

// rss is the resident memory of a process in MiB, peak what it was at most.
func rss(pid int) int  { return status(pid, "VmRSS:") }
func peak(pid int) int { return status(pid, "VmHWM:") }

func status(pid int, name string) int {
	content, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for line := range strings.Lines(string(content)) {
		if value, found := strings.CutPrefix(line, name); found {
			kib, _ := strconv.Atoi(strings.Fields(value)[0])
			return kib / 1024
		}
	}
	return 0
}

func per(total time.Duration, n int) time.Duration {
	return (total / time.Duration(n)).Round(100 * time.Microsecond)
}

func cpuModel() string {
	content, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(content)) {
		if name, value, found := strings.Cut(line, ":"); found && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return "unknown CPU"
}
