package modeltest

import (
	"hash/fnv"
	"math/rand/v2"
)

// choices are what a set of objects is made by. They are read from bytes, so
// that a fuzzer can steer them one by one; where the bytes end, they go on at
// random, but always in the same way for the same bytes.
type choices struct {
	bytes []byte
	rest  *rand.Rand
}

func newChoices(bytes []byte) *choices {
	hash := fnv.New64a()
	_, _ = hash.Write(bytes) // never fails
	return &choices{bytes: bytes, rest: rand.New(rand.NewPCG(hash.Sum64(), 1))}
}

// seeded makes choices at random, others for each seed.
func seeded(seed uint64) *choices { return &choices{rest: rand.New(rand.NewPCG(seed, 2))} }

// of is one of n, from 0.
func (c *choices) of(n int) int {
	if len(c.bytes) == 0 || n > 256 {
		return c.rest.IntN(n)
	}
	chosen := int(c.bytes[0]) % n
	c.bytes = c.bytes[1:]
	return chosen
}

func pick[T any](c *choices, from ...T) T { return from[c.of(len(from))] }

// sometimes is true once in n times.
func (c *choices) sometimes(n int) bool { return c.of(n) == 0 }
