package identity

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/utils/clock"
	kjson "sigs.k8s.io/json"
)

// CertificatePath is where the Handler answers and the Client asks.
const CertificatePath = "/v1/certificate"

// Bounds of what either side reads, in bytes.
const (
	maxBody  = 64 << 10
	maxToken = 16 << 10
)

type certificateRequest struct {
	CSR     string  `json:"csr"`
	Gateway Gateway `json:"gateway"`
}

type certificateResponse struct {
	Certificate string    `json:"certificate"`
	Roots       string    `json:"roots"`
	NotAfter    time.Time `json:"notAfter"`
}

type errorResponse struct {
	Error string `json:"error"`
}

// Handler issues certificates: POST CertificatePath with a bearer token and
//
//	{"csr": "<PEM>", "gateway": {"namespace": "…", "name": "…", "pod": "…"}}
//
// is answered by {"certificate": "<PEM chain>", "roots": "<PEM>", "notAfter":
// "<RFC 3339>"}, or by a status of 400 and above with {"error": "<sentence>"}.
// The roots are for those who keep a file of them; a Client does not let a
// manager extend what it trusts.
//
// Verify must refuse a token that does not belong to the claimed gateway with
// an error that wraps ErrUnauthenticated (401); any other error means that it
// could not tell, and that the agent shall try again (503). Its errors are
// logged, without the token, and not shown to the caller.
func (a *Authority) Handler(
	verify func(ctx context.Context, token string, claimed Gateway) error, clk clock.PassiveClock, log logr.Logger,
) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != CertificatePath {
			refuse(w, http.StatusNotFound, "Certificates are issued at "+CertificatePath+".")
			return
		}
		if r.Method != http.MethodPost {
			w.Header().Set("Allow", http.MethodPost)
			refuse(w, http.StatusMethodNotAllowed, "Certificates are asked for by POST.")
			return
		}
		token, ok := bearerToken(r)
		if !ok {
			w.Header().Set("WWW-Authenticate", "Bearer")
			refuse(w, http.StatusUnauthorized, "A bearer token is required.")
			return
		}
		in, ok := readRequest(w, r)
		if !ok {
			return
		}
		log := log.WithValues("gateway", in.Gateway.String())
		if err := verify(r.Context(), token, in.Gateway); err != nil {
			reason := strings.ReplaceAll(err.Error(), token, "[token]")
			if errors.Is(err, ErrUnauthenticated) {
				log.Info("Certificate refused", "reason", reason)
				w.Header().Set("WWW-Authenticate", "Bearer")
				refuse(w, http.StatusUnauthorized, "The token does not prove that the caller is this gateway.")
				return
			}
			log.Info("Token could not be checked", "reason", reason)
			refuse(w, http.StatusServiceUnavailable, "The token could not be checked; try again.")
			return
		}
		chain, notAfter, err := a.Sign([]byte(in.CSR), in.Gateway, clk.Now())
		if errors.Is(err, errBadRequest) {
			refuse(w, http.StatusBadRequest, err.Error())
			return
		}
		if err != nil {
			log.Error(err, "Certificate could not be signed")
			refuse(w, http.StatusServiceUnavailable, "The manager cannot sign certificates now; its log says why.")
			return
		}
		log.Info("Certificate issued", "notAfter", notAfter)
		answer(w, http.StatusOK, certificateResponse{string(chain), string(a.RootsPEM()), notAfter})
	})
}

func bearerToken(r *http.Request) (string, bool) {
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	token = strings.TrimSpace(token)
	return token, strings.EqualFold(scheme, "Bearer") && token != "" && len(token) <= maxToken
}

// readRequest answers the request itself when it cannot be read.
func readRequest(w http.ResponseWriter, r *http.Request) (in certificateRequest, ok bool) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
		refuse(w, http.StatusRequestEntityTooLarge, fmt.Sprintf("The body may have %d bytes at most.", maxBody))
		return in, false
	}
	if err != nil {
		refuse(w, http.StatusBadRequest, "The body could not be read.")
		return in, false
	}
	// Strict as the API server is: case matters, nothing unknown, nothing twice.
	faults, err := kjson.UnmarshalStrict(body, &in)
	if err = errors.Join(append(faults, err)...); err != nil {
		refuse(w, http.StatusBadRequest, fmt.Sprintf("The body is not a request for a certificate: %.200v", err))
		return in, false
	}
	if err := in.Gateway.Validate(); err != nil {
		refuse(w, http.StatusBadRequest, err.Error())
		return in, false
	}
	return in, true
}

func refuse(w http.ResponseWriter, status int, sentence string) {
	answer(w, status, errorResponse{sentence})
}

func answer(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // the caller has gone if this fails
}
