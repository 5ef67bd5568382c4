// Command bench measures what docs/benchmarks.md promises, with a real API
// server, manager, agent and Envoy on this machine, and prints the figures as
// Markdown. It judges nothing: whoever reads it compares with the bars.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"os/signal"
	"regexp"
	"runtime"
	"slices"
	"syscall"
	"time"

	"github.com/go-logr/logr"
	ctrl "sigs.k8s.io/controller-runtime"
)

// measurement is a row of the table, or a few that belong together.
type measurement struct {
	name string
	run  func(context.Context, *bench) error
}

// stage is a state of the product with what is measured in it. Stages of the
// same product follow each other: its routes become more.
type stage struct {
	name string
	// routes that are present, and the Services that they share; 0: each route
	// has one of its own.
	routes, services int
	measurements     []measurement
}

// sizes are those of the stages, and how much is measured.
type sizes struct {
	routes, many, shared int
	samples              int
	length               time.Duration
	profiles             string // folder for profiles of the manager's memory; none where empty
}

func stages(s sizes) []stage {
	return []stage{
		{name: "one route", routes: 1, measurements: []measurement{
			{"cpu-per-request", cpuPerRequest},
		}},
		{name: "routes", routes: s.routes, measurements: []measurement{
			{"add-route", addRoute},
			{"add-backend", addBackend},
			{"add-route-churn", addRouteChurn},
			{"endpoint-ready", endpointReady},
			{"undisturbed", undisturbed},
			{"change-all", changeAll},
			{"reuse", reuse},
			{"series", series},
			{"idle", idle},
			{"memory", memory},
		}},
		{name: "many routes", routes: s.many, measurements: []measurement{
			{"add-route", addRoute},
			{"add-backend", addBackend},
			{"add-route-churn", addRouteChurn},
			{"idle", idle},
			{"memory", memory},
			{"cold-start", coldStart},
		}},
		{name: "many routes on few Services", routes: s.many, services: s.shared, measurements: []measurement{
			{"add-route", addRoute},
			{"memory", memory},
			{"cold-start", coldStart},
		}},
	}
}

func main() {
	var s sizes
	flag.IntVar(&s.routes, "routes", 1000, "routes in the stage of some")
	flag.IntVar(&s.many, "many", 5000, "routes in the stages of many")
	flag.IntVar(&s.shared, "services", 50, "Services in the stage in which routes share them")
	flag.IntVar(&s.samples, "samples", 200, "samples of each latency")
	flag.DurationVar(&s.length, "length", 20*time.Second, "length of each run under load, and of the idle one")
	flag.StringVar(&s.profiles, "profiles", "", "folder for profiles of what the manager holds in memory, one for each row of it")
	pattern := flag.String("run", "", "measure only that whose STAGE/NAME matches this regular expression, for instance '5000|cpu'; STAGE is ROUTES or ROUTES-on-SERVICES")
	flag.Parse()
	ctrl.SetLogger(logr.Discard()) // the harness's clients have nothing to say
	selected, err := regexp.Compile(*pattern)
	if err != nil {
		log.Fatal("bench: -run: ", err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	if err := run(ctx, selected, s); err != nil {
		log.Print("bench: ", err)
		stop()
		os.Exit(1)
	}
}

// title is what a stage is called by on the command line.
func (s stage) title() string {
	if s.services > 0 {
		return fmt.Sprintf("%d-on-%d", s.routes, s.services)
	}
	return fmt.Sprintf("%d", s.routes)
}

func run(ctx context.Context, selected *regexp.Regexp, s sizes) (err error) {
	var wanted []stage
	for _, stage := range stages(s) {
		stage.measurements = slices.DeleteFunc(stage.measurements, func(m measurement) bool {
			return !selected.MatchString(stage.title() + "/" + m.name)
		})
		if len(stage.measurements) > 0 {
			wanted = append(wanted, stage)
		}
	}
	if len(wanted) == 0 {
		return errors.New("nothing matches -run")
	}
	folder, err := os.MkdirTemp("", "mr")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(folder) }()

	fmt.Printf("%s, %d cores, %s, %s; Envoy with one worker; each route has a hostname of its own\n\n",
		cpuModel(), runtime.NumCPU(), runtime.Version(), time.Now().UTC().Format(time.DateOnly))
	fmt.Println("| what | measured |\n|---|---|")
	var b *bench
	defer func() { err = errors.Join(err, b.stop()) }()
	for _, stage := range wanted {
		if b == nil || b.services != stage.services {
			if err := b.stop(); err != nil {
				return err
			}
			b = &bench{sizes: s, services: stage.services}
			if err := b.start(ctx, folder); err != nil {
				return err
			}
		}
		if err := b.grow(ctx, stage.routes); err != nil {
			return err
		}
		for _, measurement := range stage.measurements {
			began := time.Now()
			if err := measurement.run(ctx, b); err != nil {
				return fmt.Errorf("%s/%s: %w", stage.title(), measurement.name, err)
			}
			log.Printf("%s/%s took %s", stage.title(), measurement.name, time.Since(began).Round(time.Second))
		}
	}
	return nil
}

// row prints a row of the table.
func row(what, format string, values ...any) {
	fmt.Printf("| %s | %s |\n", what, fmt.Sprintf(format, values...))
}

// row prints a row that depends on the number of routes.
func (b *bench) row(what, format string, values ...any) {
	present := fmt.Sprintf("%s routes", grouped(b.routes))
	if b.services > 0 {
		present += fmt.Sprintf(" on %d Services", b.services)
	}
	row(present+": "+what, format, values...)
}

// grouped writes a number as English does: 5,000.
func grouped(n int) string {
	if n < 1000 {
		return fmt.Sprint(n)
	}
	return fmt.Sprintf("%s,%03d", grouped(n/1000), n%1000)
}
