// Command manager is meshroute's operator: it reads routes and gateways from a
// cluster, runs the gateways and configures them. Its subcommand standalone does
// the same for files and local processes, without a cluster.
package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"go.uber.org/zap/zapcore"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/log/zap"
)

// version is set when a release is built.
var version = "dev"

func main() {
	root := operatorCommand()
	root.AddCommand(standaloneCommand())
	verbosity := root.PersistentFlags().Uint8("v", 0, "how much is logged: 1 adds each build and how long it took")
	root.PersistentPreRun = func(*cobra.Command, []string) {
		ctrl.SetLogger(zap.New(zap.Level(zapcore.Level(-int8(min(*verbosity, 100))))))
	}
	if err := root.ExecuteContext(ctrl.SetupSignalHandler()); err != nil {
		fmt.Fprintln(os.Stderr, "manager:", err)
		os.Exit(1)
	}
}

func newCommand(use, short string, run func(*cobra.Command) error) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: short, Version: version,
		Args: cobra.NoArgs, SilenceUsage: true, SilenceErrors: true,
		RunE: func(command *cobra.Command, _ []string) error { return run(command) },
	}
}
