package model

import (
	"math/rand/v2"
	"reflect"
	"testing"
)

// For the tests that are outside of this package, because what makes their
// objects imports it.

// CheckInvariants holds what is true of every Result.
func CheckInvariants(t testing.TB, result Result) { checkInvariants(t, result) }

// Shuffle brings the objects of each kind into another order.
func Shuffle(random *rand.Rand, in *Inputs) { shuffle(random, in) }

// Mutate changes some values of what object points to, to what no schema would
// admit.
func Mutate(random *rand.Rand, object any) {
	m := mutator{random: random}
	m.mutate(reflect.ValueOf(object).Elem())
}
