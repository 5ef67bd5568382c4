// Package demo_test uses the product without a cluster, from outside: by the
// commands of the README.
package demo_test

import (
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"testing"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"meshroute.io/meshroute/test/harness"
)

func TestDemo(t *testing.T) {
	RegisterFailHandler(Fail)
	RunSpecs(t, "Demo")
}

var _ = Describe("The demo", Label("demo"), func() {
	It("serves the old monitoring set-up on :8888, shows the table, goes on running, and goes without a trace", func(ctx SpecContext) {
		root, err := harness.Root()
		Expect(err).NotTo(HaveOccurred())
		state, err := os.MkdirTemp("", "mr") // short: Unix sockets lie below it
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(os.RemoveAll, state)
		run := func(target string) string {
			GinkgoHelper()
			command := exec.Command("make", "--no-print-directory", target)
			command.Dir = root
			command.Env = append(os.Environ(), "XDG_STATE_HOME="+state)
			output, err := command.CombinedOutput()
			Expect(err).NotTo(HaveOccurred(), "make %s:\n%s", target, output)
			return string(output)
		}

		DeferCleanup(func() { run("demo-down") })
		output := run("demo")
		Expect(output).To(MatchRegexp(`NAMESPACE +NAME +HOSTS +READY +PROGRAMMED +ENDPOINTS +MESSAGE\n`))
		Expect(output).To(MatchRegexp(`monitoring +monitoring +\* +True +1/1 +3/3 +serving\n`))
		Expect(output).To(MatchRegexp(`monitoring +status +True +1 of 1 routes ready\n`))

		for path, body := range map[string]string{
			"/health":                   `^healthy\n$`,
			"/nginx_status":             `^Active connections: \d+ \nserver accepts handled requests\n \d+ \d+ \d+ \nReading: \d+ Writing: \d+ Waiting: \d+ \n$`,
			"/api/prometheus/-/healthy": `^Prometheus Server is Healthy`,
			"/grafana/api/health":       `"database": ?"ok"`,
			"/api/prometheus/api/v1/query?query=vector(42)": `"42"`,
		} {
			client := http.Client{Timeout: 10 * time.Second}
			response, err := client.Get("http://127.0.0.1:8888" + path)
			Expect(err).NotTo(HaveOccurred(), path)
			content, err := io.ReadAll(response.Body)
			Expect(err).NotTo(HaveOccurred(), path)
			Expect(response.Body.Close()).To(Succeed())
			Expect(response.StatusCode).To(Equal(http.StatusOK), path)
			Expect(string(content)).To(MatchRegexp(body), path)
		}

		run("demo-down")
		for _, port := range []string{"8888", "9090", "3000", "8086"} {
			_, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "tcp", "127.0.0.1:"+port)
			Expect(err).To(HaveOccurred(), "port %s is still served", port)
		}
	})
})
