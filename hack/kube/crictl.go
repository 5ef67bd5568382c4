package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// crictl is what kind asks of that tool inside a node: `inspecti IMAGE`, of
// which it reads status.id and status.repoTags, and `images`. cri-tools itself
// cannot be had as a Go module here.
func crictl(args []string) error {
	if len(args) == 0 {
		return errors.New("crictl: usage: crictl inspecti IMAGE | crictl images")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	conn, err := grpc.NewClient("unix:///run/containerd/containerd.sock",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20)))
	if err != nil {
		return fmt.Errorf("crictl: %w", err)
	}
	images := runtime.NewImageServiceClient(conn)

	out := json.NewEncoder(os.Stdout)
	out.SetIndent("", "  ")
	switch args[0] {
	case "inspecti":
		name := args[len(args)-1]
		answer, err := images.ImageStatus(ctx, &runtime.ImageStatusRequest{Image: &runtime.ImageSpec{Image: name}})
		if err != nil {
			return fmt.Errorf("crictl: %w", err)
		}
		if answer.Image == nil {
			return fmt.Errorf("crictl: no such image %q present", name)
		}
		return out.Encode(map[string]any{"status": map[string]any{
			"id":          answer.Image.Id,
			"repoTags":    answer.Image.RepoTags,
			"repoDigests": answer.Image.RepoDigests,
		}})
	case "images":
		answer, err := images.ListImages(ctx, &runtime.ListImagesRequest{})
		if err != nil {
			return fmt.Errorf("crictl: %w", err)
		}
		return out.Encode(map[string]any{"images": answer.Images})
	default:
		return fmt.Errorf("crictl: %q is not among what kind needs: inspecti, images", args[0])
	}
}
