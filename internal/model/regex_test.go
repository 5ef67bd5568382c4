package model

import (
	"encoding/json"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp/syntax"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestRegexProblem(t *testing.T) {
	t.Parallel()
	for pattern, want := range map[string]string{
		`/users/[^/]+/orders/[0-9]+`:                 "",
		`/(?i)img/.*\.(png|jpe?g)`:                   "",
		`/[^/]{1,64}/x`:                              "",
		`/[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}`: "",
		``:             "",
		`/(`:           "is no regular expression of RE2's syntax: missing closing ): `/(`",
		`/a**`:         "is no regular expression of RE2's syntax: invalid nested repetition operator: `**`",
		`/(?=x)`:       "is no regular expression of RE2's syntax: invalid or unsupported Perl syntax: `(?=`",
		`/(a)\1`:       "is no regular expression of RE2's syntax: invalid escape sequence: `\\1`",
		`/a{1001}`:     "is no regular expression of RE2's syntax: invalid repeat count: `{1001}`",
		`/ü`:           "holds a character that is not ASCII: encode it as it stands in the request",
		`/\p{Greek}+`:  `holds a Unicode class (\p or \P): list the characters instead`,
		`/\x{20AC}`:    `holds a character by its number (\x{...}): write \xNN, up to \x7F`,
		`/[\PL]`:       `holds a Unicode class (\p or \P): list the characters instead`,
		`/(a{50}){20}`: "is too big: it comes to a program of 1051 instructions, and at most 300 may be: write fewer or smaller repetitions",
	} {
		if diff := cmp.Diff(want, regexProblem(pattern)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", pattern, diff)
		}
	}
}

// What passes here passes in Envoy, too, and its program is no bigger there than
// it was taken for.
func TestEnvoyTakesTheRegularExpressionsThatPass(t *testing.T) {
	t.Parallel()
	binary := os.Getenv("ENVOY_BIN")
	if binary == "" {
		t.Skip("ENVOY_BIN is not set, so no Envoy looks at the expressions: run make unit, or set ENVOY_BIN=$(hack/envoy.sh)")
	}
	var routes []any
	for _, pattern := range somePatterns() {
		if regexProblem(pattern) != "" {
			continue
		}
		parsed, err := syntax.Parse(pattern, syntax.Perl)
		if err != nil {
			t.Fatal(err)
		}
		program, err := syntax.Compile(parsed.Simplify())
		if err != nil {
			t.Fatal(err)
		}
		routes = append(routes, map[string]any{
			"match": map[string]any{"safe_regex": map[string]any{
				"regex": pattern, "google_re2": map[string]any{"max_program_size": regexProgram(program)},
			}},
			"direct_response": map[string]any{"status": 200},
		})
	}
	if len(routes) < 1000 {
		t.Fatalf("only %d expressions pass", len(routes))
	}
	const typeURL = "type.googleapis.com/envoy.extensions.filters."
	bootstrap, err := json.Marshal(map[string]any{"static_resources": map[string]any{"listeners": []any{map[string]any{
		"address": map[string]any{"socket_address": map[string]any{"address": "127.0.0.1", "port_value": 0}},
		"filter_chains": []any{map[string]any{"filters": []any{map[string]any{
			"name": "manager",
			"typed_config": map[string]any{
				"@type":       typeURL + "network.http_connection_manager.v3.HttpConnectionManager",
				"stat_prefix": "x",
				"http_filters": []any{map[string]any{
					"name": "router", "typed_config": map[string]any{"@type": typeURL + "http.router.v3.Router"},
				}},
				"route_config": map[string]any{"virtual_hosts": []any{map[string]any{
					"name": "any", "domains": []string{"*"}, "routes": routes,
				}}},
			},
		}}}},
	}}}})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "bootstrap.json")
	if err := os.WriteFile(path, bootstrap, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), binary, "--mode", "validate", "--config-path", path, "--log-level", "error").CombinedOutput()
	if err != nil {
		t.Errorf("Envoy refuses one: %v\n%s", err, out)
	}
}

// somePatterns are regular expressions as people write them, and 3,000 that no
// person would, always the same.
func somePatterns() []string {
	patterns := []string{
		`/.*`, `/users/[^/]+/orders/[0-9]+`, `.*\.(?:png|jpg|jpeg|gif|svg|css|js|woff2?)`, `/[^/]{1,64}/x`, `/(?i)sk`,
		`/[^\x00-\x7F]`, `/[^\x00-\xff]`, `/a{250}`, `\Q/a+b\E(?s:.)\z`, `[[:alpha:]][[:^word:]]`, `(?P<a>x)(?<b>y)`, `\xE9`, `(?U)/a+?`,
	}
	random := rand.New(rand.NewPCG(1, 2))
	pieces := []string{
		"a", "B", "k", ".", `\.`, "/", "[a-f]", "[^/]", `\d`, `\W`, `\s`, `\S`, "[[:punct:]]", `[^\x30-\xC9]`, `\xe4`, `\x0A`, "^", "$", `\b`, `\B`,
		"(a|bc)", "(?i:ks)", "(?s:.)", "[^a-z0-9]", `[\]\\-]`, "x*", "x+?", "(?:ab)?", "[0-9]{3}", "[^/]{2,5}", "(a|b|)", `\C`, "{", "}", "]", ")", "(", "|",
	}
	var made func(depth int) string
	made = func(depth int) string {
		var text strings.Builder
		for range 1 + random.IntN(5) {
			piece := pieces[random.IntN(len(pieces))]
			if depth > 0 && random.IntN(3) == 0 {
				piece = "(" + made(depth-1) + ")"
			}
			text.WriteString(piece)
			if random.IntN(4) == 0 {
				text.WriteString([]string{"*", "+", "?", "*?", "{2}", "{1,3}", "{0,2}?", "{4,}"}[random.IntN(8)])
			}
		}
		return text.String()
	}
	for range 3000 {
		patterns = append(patterns, "/"+made(3))
	}
	slices.Sort(patterns)
	return slices.Compact(patterns)
}
