package modeltest

import (
	"strings"
	"testing"
)

// Every field that users can set is set by some objects, with every value that
// an enumeration has. A new field that is not needs a word in words.go that its
// schema admits.
func TestEveryFieldIsSet(t *testing.T) {
	t.Parallel()
	g, err := New()
	if err != nil {
		t.Fatal(err)
	}
	missing := g.Missing()
	for seed := uint64(0); seed < 200 && len(missing) > 0; seed++ {
		if _, err := g.Random(seed); err != nil {
			t.Fatal(err)
		}
		missing = g.Missing()
	}
	if len(missing) > 0 {
		t.Errorf("no object sets\n  %s", strings.Join(missing, "\n  "))
	}
	if g.Refused*20 > g.Made {
		t.Errorf("%d of %d objects were refused by their schemas, which leaves too few", g.Refused, g.Made)
	}
	t.Logf("%d objects, %d of them refused", g.Made, g.Refused)
}
