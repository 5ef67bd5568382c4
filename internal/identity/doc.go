// Package identity makes both ends of xDS certain of each other.
//
// The manager holds an Authority, a certificate authority kept as a Bundle in a
// Secret. With it the manager issues its own serving certificates, answers
// agents that ask for a certificate (Handler) and checks those certificates
// when the agents connect (MutualTLS, PeerGateway). An agent runs a Client: it
// proves itself once with a token, receives a certificate for a key that never
// leaves its memory, and renews it for as long as it runs.
//
// Whether a token is good is the caller's business (a TokenReview in a cluster,
// a file in standalone mode); so are reading and writing the Secret. This
// package knows neither Kubernetes clients nor xDS.
//
// The authority is replaced long before it expires (RotateIfDue). The old key
// signs the new authority on that day, and this cross-signed certificate
// travels with every certificate issued from then on. So who still trusts only
// the old root accepts the new authority at once, in both directions, and
// nobody has to be updated in a certain order.
package identity
