package xds

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/protobuf/proto"
)

// storeMagic starts a store file; a SHA-256 of the rest and the rest follow, a
// DeltaDiscoveryResponse. Another layout gets another number.
const storeMagic = "meshroute-xds-1\n"

// maxStoreSize bounds what is read into memory.
const maxStoreSize = 256 << 20

// store is where the last good configuration is kept: two files, so that keys
// touch no disk.
type store struct {
	// path of all but the secrets; empty: nothing is kept.
	path string
	// secrets is their path, on a file system in memory; empty: none are kept.
	secrets string
}

// write replaces the files, the secrets first: what the other file says needs
// them.
func (s store) write(resources []*discoveryv3.Resource) error {
	var secrets, others []*discoveryv3.Resource
	for _, r := range resources {
		if r.GetResource().GetTypeUrl() == resource.SecretType {
			secrets = append(secrets, r)
		} else {
			others = append(others, r)
		}
	}
	var err error
	if s.secrets != "" {
		err = writeStore(s.secrets, secrets)
	}
	if s.path != "" {
		err = errors.Join(err, writeStore(s.path, others))
	}
	return err
}

// read returns what write wrote, as far as it can be read.
func (s store) read() (resources []*discoveryv3.Resource, err error) {
	for _, path := range []string{s.secrets, s.path} {
		if path == "" {
			continue
		}
		read, problem := readStore(path)
		if problem != nil {
			err = errors.Join(err, fmt.Errorf("%s: %w", path, problem))
		}
		resources = append(resources, read...)
	}
	return resources, err
}

// writeStore replaces the file in one step: whoever reads it finds the old
// content or the new, also after a power cut.
func writeStore(path string, resources []*discoveryv3.Resource) (err error) {
	all := &discoveryv3.DeltaDiscoveryResponse{Resources: slices.Clone(resources)}
	slices.SortFunc(all.GetResources(), func(a, b *discoveryv3.Resource) int {
		return cmp.Or(cmp.Compare(a.GetResource().GetTypeUrl(), b.GetResource().GetTypeUrl()), cmp.Compare(a.GetName(), b.GetName()))
	})
	body, err := proto.MarshalOptions{Deterministic: true}.Marshal(all)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(body)

	temporary := path + ".tmp"
	file, err := os.OpenFile(temporary, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	for _, part := range [][]byte{[]byte(storeMagic), sum[:], body} {
		if err == nil {
			_, err = file.Write(part)
		}
	}
	if err == nil {
		err = file.Sync()
	}
	if err := errors.Join(err, file.Close()); err != nil {
		return err
	}
	if err := os.Rename(temporary, path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// readStore returns what writeStore wrote. A file that does not exist is empty.
func readStore(path string) ([]*discoveryv3.Resource, error) {
	file, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	content, err := io.ReadAll(io.LimitReader(file, maxStoreSize+1))
	if err != nil {
		return nil, err
	}
	if len(content) > maxStoreSize {
		return nil, fmt.Errorf("longer than %d bytes", maxStoreSize)
	}
	body, ok := bytes.CutPrefix(content, []byte(storeMagic))
	if !ok || len(body) < sha256.Size {
		return nil, errors.New("not a configuration store of this version")
	}
	sum, body := body[:sha256.Size], body[sha256.Size:]
	if wanted := sha256.Sum256(body); !bytes.Equal(sum, wanted[:]) {
		return nil, errors.New("checksum does not match: truncated or damaged")
	}
	all := &discoveryv3.DeltaDiscoveryResponse{}
	if err := proto.Unmarshal(body, all); err != nil {
		return nil, err
	}
	return all.GetResources(), nil
}
