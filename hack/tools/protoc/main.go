// Command protoc generates code from a .proto file, as the program of that name
// does, which comes as a binary only:
//
//	protoc PLUGIN=OPTIONS… FILE
//
// Each PLUGIN is a program that speaks protoc's plugin protocol. What it makes
// is written below the current folder.
package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/bufbuild/protocompile"
	"github.com/bufbuild/protocompile/protoutil"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/pluginpb"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "protoc:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) < 2 {
		return fmt.Errorf("usage: protoc PLUGIN=OPTIONS… FILE")
	}
	plugins, file := args[:len(args)-1], args[len(args)-1]
	compiler := protocompile.Compiler{
		Resolver:       protocompile.WithStandardImports(&protocompile.SourceResolver{}),
		SourceInfoMode: protocompile.SourceInfoStandard, // comments go into the code
	}
	files, err := compiler.Compile(context.Background(), file)
	if err != nil {
		return err
	}
	for _, plugin := range plugins {
		program, options, _ := strings.Cut(plugin, "=")
		request := &pluginpb.CodeGeneratorRequest{
			FileToGenerate: []string{file},
			Parameter:      &options,
			ProtoFile:      []*descriptorpb.FileDescriptorProto{protoutil.ProtoFromFileDescriptor(files[0])},
		}
		if err := generate(program, request); err != nil {
			return fmt.Errorf("%s: %w", filepath.Base(program), err)
		}
	}
	return nil
}

func generate(program string, request *pluginpb.CodeGeneratorRequest) error {
	in, err := proto.Marshal(request)
	if err != nil {
		return err
	}
	command := exec.Command(program)
	command.Stdin, command.Stderr = bytes.NewReader(in), os.Stderr
	out, err := command.Output()
	if err != nil {
		return err
	}
	response := &pluginpb.CodeGeneratorResponse{}
	if err := proto.Unmarshal(out, response); err != nil {
		return err
	}
	if response.Error != nil {
		return fmt.Errorf("%s", response.GetError())
	}
	for _, made := range response.GetFile() {
		if err := os.WriteFile(made.GetName(), []byte(made.GetContent()), 0o644); err != nil {
			return err
		}
	}
	return nil
}
